"""Prompts, contents and pairs as the user's editor writes them, and what no model could run."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from one_sentence import sentence

from saif_fast import embedded
from saif_fast.identify import ContrastPairs, build_pairs
from saif_fast.tasks import Score, Task, Wording

CAT = "Tell me about my black cat in the garden."
DOG = "Tell me about the old dog in the kitchen."
EMBEDDED = ("--model", "embedded", "--sae", "embedded")
LONG = "cat " * 1100  # the embedded model's context is 1024


def generate(saif: Any, set_dir: Path, *options: str | Path, stdin: Any = None) -> Any:
    return saif(
        *("generate", "--model", "embedded", "--set-dir", set_dir, "--runtime", "transformers"),
        *options,
        stdin=stdin,
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_byte_order_mark_changes_no_reply(saif, set_dir: Path, tmp_path: Path, end: str) -> None:
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes(f"{CAT}\n{DOG}\n".encode())
    marked.write_bytes(f"{CAT}{end}{DOG}{end}".encode("utf-8-sig"))
    replies = [generate(saif, set_dir, "--prompts", file).stdout for file in (plain, marked)]
    assert replies[0] == replies[1] and replies[0].startswith("My black cat")
    assert generate(saif, set_dir, stdin=marked.read_bytes()).stdout == replies[0]


def test_a_line_separator_within_a_prompt_makes_no_second_one(saif, set_dir: Path) -> None:
    result = generate(saif, set_dir, stdin=f"{CAT}\u2028{DOG}\x0c{CAT}\n")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_content(
    saif, tmp_path: Path, monkeypatch
) -> None:
    built: list[ContrastPairs] = []

    def build(*args: Any, **options: Any) -> ContrastPairs:
        built.append(build_pairs(*args, **options))
        raise ValueError("seen")

    monkeypatch.setattr(sys.modules["saif_fast.cli.identify"], "build_pairs", build)
    contents = tmp_path / "contents.txt"
    contents.write_bytes(f"{CAT}\r\n".encode("utf-8-sig"))
    saif(
        *("identify", *EMBEDDED, "--instruction", "french", "--contents", contents),
        *("-o", tmp_path / "set.safetensors"),
    )
    assert all(pair.positive.startswith(CAT) for pair in built[0].pairs)


@pytest.mark.parametrize("option", ["--prompts", "--contents", "--pairs"])
def test_a_file_that_is_no_text_is_named_with_the_place(
    saif, set_dir: Path, tmp_path: Path, option: str
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b'{"positive": "a b", "negative": "a"}\n' + "Über".encode("latin-1"))
    if option == "--prompts":
        result = generate(saif, set_dir, option, file)
    else:
        instruction = ("--instruction", "french") if option == "--contents" else ()
        output = tmp_path / "set.safetensors"
        result = saif("identify", *EMBEDDED, *instruction, option, file, "-o", output)
    assert f"{file}:2: expected UTF-8, got 0xdc as byte 1 of the line" in sentence(result)


BAD_PAIRS = {
    "empty": (
        {"positive": CAT, "negative": ""},
        ":2: negative '': expected 1 to 1023 tokens, got 0",
    ),
    "too long": ({"positive": LONG, "negative": CAT}, ":2: positive 'cat cat cat"),
}


@pytest.mark.parametrize(("pair", "says"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_pair_that_no_model_could_run_is_named(
    saif, tmp_path: Path, pair: dict[str, str], says: str
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    good = {"positive": f"{CAT} Answer in French.", "negative": CAT, "group": "fr"}
    pairs.write_text(json.dumps(good) + "\n" + json.dumps(pair) + "\n")
    output = tmp_path / "set.safetensors"
    result = saif("identify", *EMBEDDED, "--no-chat", "--pairs", pairs, "-o", output)
    assert f"{pairs}{says}" in (error := sentence(result))
    assert "expected 1 to 1023 tokens, got " in error and len(error) < 400


def test_a_template_that_renders_none_of_the_content_is_seen_before_the_run(
    saif, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(embedded.model_path(), model)
    (model / "chat_template.jinja").write_text("User: hello\nAssistant:")
    result = saif(
        *("identify", "--model", model, "--sae", "embedded", "--instruction", "french"),
        *("-o", tmp_path / "set.safetensors"),
    )
    error = sentence(result)
    assert "pair 0: expected sides that differ in tokens after the chat template" in error


def started(*_: object) -> None:
    raise AssertionError("something was run")


def test_a_prompt_that_no_model_could_run_is_refused_before_an_engine_starts(
    saif, set_dir: Path, monkeypatch
) -> None:
    monkeypatch.setattr("saif_fast.cli.loading.open_runtime", started)
    result = generate(saif, set_dir, stdin=f"{CAT}\n\n{LONG}\n")
    assert "--prompts -:3: expected 1 to 1023 tokens, got " in sentence(result)


def own_task(split: str) -> Task:
    """A task with a content in this split that fills the context."""
    contents = {"identify": (CAT,), "select": (DOG,), "report": (f"{CAT} {DOG}",)}
    contents[split] = (LONG,) if split == "identify" else (*contents[split], LONG)
    wordings = (Wording("en", "Be brief."), Wording("fr", "Sois bref."))
    return Task("own", wordings, lambda *_: Score(True, True), **contents)


def test_auto_checks_the_prompts_it_chooses_on(saif, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(math, "own_task", own_task("select"), raising=False)
    monkeypatch.setattr("saif_fast.identify.collect", started)
    result = saif(
        *("identify", *EMBEDDED, "--instruction", "math:own_task", "--auto"),
        *("-o", tmp_path / "set.safetensors"),
    )
    assert "task 'own': select content 1 'cat cat cat" in sentence(result)


@pytest.mark.parametrize(
    ("split", "options", "says"),
    [
        ("identify", (), "pair 0: positive 'cat cat cat"),
        ("select", (), "task 'own': select content 1 'cat cat cat"),
        ("report", (), "task 'own': report content 1 'cat cat cat"),
        ("report", ("--report", "1"), None),
    ],
)
def test_eval_checks_every_prompt_before_it_chooses(
    saif, monkeypatch, split: str, options: tuple[str, ...], says: str | None
) -> None:
    monkeypatch.setattr(math, "own_task", own_task(split), raising=False)
    monkeypatch.setattr(sys.modules["saif_fast.cli.evaluate"], "track_of", started)
    arguments = ("eval", *EMBEDDED, "--task", "math:own_task", *options)
    if says is None:
        with pytest.raises(AssertionError, match="something was run"):
            saif(*arguments)
    else:
        assert says in sentence(saif(*arguments))


def test_eval_misses_a_runtime_before_it_chooses(saif, monkeypatch) -> None:
    monkeypatch.setattr("saif_fast.runtime.find_spec", lambda name: None)
    result = saif(
        *("eval", "--model", "missing", "--sae", "missing", "--task", "french"),
        *("--runtime", "vllm"),
    )
    assert "runtime: 'vllm' needs the package vllm" in sentence(result)
