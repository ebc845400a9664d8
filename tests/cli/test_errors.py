from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from one_sentence import sentence

from saif_fast import embedded
from saif_fast.edits import Edit
from saif_fast.latent_set import LatentSet
from saif_fast.records import Latent
from saif_fast.sae import load_sae
from saif_fast.set_file import FORMAT_VERSION
from saif_fast.tasks.embedded import embedded_task

CAT = "Tell me about my black cat in the garden."
EMBEDDED = ("--model", "embedded", "--sae", "embedded")


def truncated(good: bytes) -> bytes:
    return good[:-7]


def not_safetensors(good: bytes) -> bytes:
    return b"to be or not to be, that is the question" * 9


def pickled(good: bytes) -> bytes:
    return pickle.dumps({"french": list(range(50))})


def newer(good: bytes) -> bytes:
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    (key,) = header["__metadata__"]
    metadata = json.loads(header["__metadata__"][key])
    header["__metadata__"][key] = json.dumps({**metadata, "format": FORMAT_VERSION + 1})
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + good[8 + size :]


def foreign(good: bytes) -> bytes:
    return safetensors.torch.save({"weight": torch.zeros(2)})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "not a complete safetensors file"),
        (not_safetensors, "not a complete safetensors file"),
        (pickled, "not a complete safetensors file"),
        (newer, f"format {FORMAT_VERSION + 1} is newer"),
        (foreign, "not a latent set"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "export", "generate"])
def test_a_bad_file_is_named_in_one_sentence(
    saif, french: Path, tmp_path: Path, damage, says: str, command: str
) -> None:
    bad = tmp_path / "bad.safetensors"
    content = damage(french.read_bytes())
    bad.write_bytes(content)
    arguments = {
        "inspect": (bad,),
        "export": (bad, "--logit-bias", "4", "--model", "embedded"),
        "generate": (
            *("--model", "embedded", "--set-dir", tmp_path, "--saif", "bad"),
            *("--runtime", "transformers"),
        ),
    }[command]
    error = sentence(saif(command, *arguments, stdin=CAT))
    named = "set 'bad': " if command == "generate" else str(bad)
    assert named in error and says in error
    assert bad.read_bytes() == content


@pytest.mark.parametrize("command", ["inspect", "export", "generate"])
def test_another_models_set_is_refused(saif, tmp_path: Path, command: str) -> None:
    file = tmp_path / "other.safetensors"
    LatentSet.from_vector(torch.ones(48), layer=3, num_layers=4).save(file)
    arguments = {
        "inspect": (file, "--model", "embedded"),
        "export": (file, "--logit-bias", "4", "--model", "embedded"),
        "generate": (
            *("--model", "embedded", "--set-dir", tmp_path, "--saif", "other"),
            *("--runtime", "transformers"),
        ),
    }[command]
    error = sentence(saif(command, *arguments, stdin=CAT))
    assert "hidden size 48 and 4 layers" in error and "hidden size 64 and 3 layers" in error


def test_k_larger_than_the_sae_is_refused_and_nothing_is_overwritten(saif, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    output.write_bytes(b"precious")
    result = saif("identify", *EMBEDDED, "--instruction", "french", "--k", "5000", "-o", output)
    assert "k: expected 1 to 1024" in sentence(result)
    assert output.read_bytes() == b"precious"


def test_empty_pairs_are_refused(saif, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n")
    result = saif("identify", *EMBEDDED, "--pairs", pairs, "-o", tmp_path / "set.safetensors")
    assert "at least one pair" in sentence(result)


def test_a_broken_pair_is_named_by_its_line(saif, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"positive": "a", "negative": "b"}\n{"positive": "a"}\n')
    result = saif("identify", *EMBEDDED, "--pairs", pairs, "-o", tmp_path / "set.safetensors")
    assert f"{pairs}:2" in sentence(result)


def test_an_instruction_that_changes_no_latent_is_refused(saif, tmp_path: Path) -> None:
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "set.safetensors"
    # What is higher in one pair is lower in the other by as much.
    sides = (CAT, f"{CAT} Answer in French.")
    both = [{"positive": one, "negative": other} for one, other in (sides, sides[::-1])]
    pairs.write_text("\n".join(json.dumps(pair) for pair in both))
    result = saif("identify", *EMBEDDED, "--pairs", pairs, "-o", output)
    error = result.stderr.splitlines()[-1]
    assert result.exit_code == 1
    assert error == "error: pairs: expected an instruction that changes sparse latents, got none"
    assert not output.exists()


def test_export_refuses_what_is_no_last_layer_constant(saif, tmp_path: Path) -> None:
    live, middle = tmp_path / "live.safetensors", tmp_path / "middle.safetensors"
    sae = load_sae(embedded.sae_path())
    LatentSet.from_sae(sae, [Latent(5, Edit("clamp", 1.0))], num_layers=3).save(live)
    LatentSet.from_vector(torch.ones(64), layer=1, num_layers=3).save(middle)
    error = sentence(saif("export", live, "--logit-bias", "4"))
    assert "by their activation at layer 2" in error
    assert "layer 1" in sentence(saif("export", middle, "--logit-bias", "4"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("identify", *EMBEDDED), "either --pairs or --instruction"),
        (
            ("identify", *EMBEDDED, "--instruction", "french", "--pairs", "p"),
            "either --pairs or --instruction",
        ),
        (("identify", *EMBEDDED, "--pairs", "p", "--auto"), "the name of a task"),
        (("identify", *EMBEDDED, "--pairs", "missing.jsonl"), "missing.jsonl"),
        (("identify", *EMBEDDED, "--instruction", "no.such:task"), "no.such:task"),
        (("identify", *EMBEDDED, "--instruction", "frnch"), "is no task; the tasks are french"),
        (("identify", *EMBEDDED, "--instruction", "JSON"), "is no task; the tasks are french"),
        (("identify", *EMBEDDED, "--instruction", " "), "got an empty one"),
        (
            ("identify", *EMBEDDED, "--instruction", "french", "--instruction", "Use French."),
            "expected one task or texts only",
        ),
        (
            ("identify", *EMBEDDED, "--instruction", "french", "--auto", "--k", "3"),
            "without --k and --beta",
        ),
        (("identify", *EMBEDDED, "--pairs", "p", "--position", "both"), "--position"),
        (
            ("identify", *EMBEDDED, "--instruction", "french", "--journal", "j"),
            "--journal: expected with --auto",
        ),
        (
            ("identify", *EMBEDDED, "--instruction", "french", "--auto", "--window", "some"),
            "window: expected one of generated, decaying",
        ),
        (
            ("identify", "--model", "missing/model", *EMBEDDED[2:], "--instruction", "french"),
            "model",
        ),
        (("identify", *EMBEDDED[:2], "--sae", "missing", "--instruction", "french"), "missing"),
        (("make", "--sae", "embedded", "--latent", "5"), "expected INDEX=EDIT"),
        (("make", "--sae", "embedded", "--latent", "5=clamp"), "edit"),
        (("make", "--sae", "embedded", "--latent", "99999=ablate"), "latent: expected 0 to 1023"),
        (("make", "--sae", "embedded:first", "--latent", "5=ablate"), "embedded:middle"),
    ],
    ids=lambda value: " ".join(value[-3:]) if isinstance(value, tuple) else None,
)
def test_a_wrong_argument_is_one_sentence(
    saif, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in sentence(saif(*arguments, "-o", tmp_path / "set.safetensors"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--saif", "german"), "available sets: french"),
        (("--saif", "french*nan"), "strength between -10 and 10 for set 'french', got 'nan'"),
        (("--saif", "french", "--scope", "everything"), "saif_scope"),
        (("--saif", "french", "--start", "-1"), "saif_start"),
        (("--saif", "french", "--start", "64"), "max_tokens), 64, got 64"),
        (("--saif", "french*0"), "a strength other than 0 for set 'french'"),
        (("--compare",), "--compare: expected --saif"),
        (("--scope", "all"), "'saif_scope' was given without 'saif'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_request_is_refused_before_the_model_loads(
    saif, set_dir: Path, options: tuple[str, ...], says: str
) -> None:
    # The model does not exist: an error about it would show that it was asked for first.
    result = saif("generate", "--model", "missing", "--set-dir", set_dir, *options, stdin=CAT)
    assert says in sentence(result)


@pytest.mark.parametrize("strength", ["nan", "inf", "0"])
def test_export_refuses_a_strength_that_means_nothing(saif, french: Path, strength: str) -> None:
    result = saif("export", french, "--logit-bias", "4", "--strength", strength)
    assert "--strength: expected a finite number that is not 0" in sentence(result)


@pytest.mark.parametrize(
    ("output", "says"), [(".", "got a directory"), ("file/set", "its directory cannot be made")]
)
@pytest.mark.parametrize(
    "command", [("identify", "--instruction", "french"), ("eval", "--task", "french")]
)
def test_a_wrong_output_is_refused_before_the_model_loads(
    saif, tmp_path: Path, command: tuple[str, ...], output: str, says: str
) -> None:
    (tmp_path / "file").touch()
    result = saif(*command, "--model", "missing", "--sae", "missing", "-o", tmp_path / output)
    assert f"--output {tmp_path / output}: " in (error := sentence(result)) and says in error


def test_a_directory_that_cannot_be_written_to_is_refused_before_the_work(
    saif, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    result = saif("make", "--sae", "missing", "--latent", "5=clamp:1", "-o", tmp_path / "set")
    assert "expected a directory to write to, got a read-only one" in sentence(result)


@pytest.mark.parametrize(
    "name", ["._french", "my french", "größe.safetensors", "-x", "a" * 65, "french.safetensors "]
)
@pytest.mark.parametrize(
    "command",
    [
        ("identify", "--model", "missing", "--sae", "missing", "--instruction", "french"),
        ("make", "--sae", "missing", "--latent", "5=clamp:1"),
    ],
    ids=["identify", "make"],
)
def test_a_set_that_nothing_could_serve_is_refused_before_the_work(
    saif, tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    error = sentence(saif(*command, f"--output={tmp_path / name}"))
    assert "expected a file NAME.safetensors, which a set directory offers as NAME" in error
    assert not list(tmp_path.iterdir())


def test_contents_that_the_task_is_judged_on_are_refused(saif, tmp_path: Path) -> None:
    contents = tmp_path / "contents.txt"
    contents.write_text(f"{CAT}\n{embedded_task('french').select[0]}\n")
    result = saif(
        *("identify", *EMBEDDED, "--instruction", "french", "--auto", "--contents", contents),
        *("-o", tmp_path / "set.safetensors"),
    )
    assert "expected none that task 'french' selects or reports on" in sentence(result)


def truncated_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


def other_sizes(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


def broken_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% if %}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated_weights, "incomplete"),
        (other_sizes, "mismatch"),
        (broken_template, "chat template: Expected an expression"),
    ],
)
@pytest.mark.parametrize("command", ["identify", "generate"])
def test_a_damaged_model_is_one_sentence(
    saif, set_dir: Path, tmp_path: Path, command: str, damage, says: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(embedded.model_path(), model)
    damage(model)
    arguments = {
        "identify": ("--sae", "embedded", "--instruction", "french", "-o", tmp_path / "set"),
        "generate": ("--set-dir", set_dir, "--runtime", "transformers"),
    }[command]
    assert says in sentence(saif(command, "--model", model, *arguments, stdin=CAT))


def test_no_prompts_are_an_error(saif, set_dir: Path) -> None:
    result = saif("generate", "--model", "embedded", "--set-dir", set_dir, stdin="\n")
    assert "at least one line" in sentence(result)
