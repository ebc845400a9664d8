from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from transformers.utils import logging

from saif_fast import __version__
from saif_fast.cli.loading import as_task
from saif_fast.edits import Edit
from saif_fast.evaluate.document import read_results
from saif_fast.identify import ContrastPairs, build_pairs
from saif_fast.latent_set import LatentSet
from saif_fast.logit_bias import Unembedding
from saif_fast.set_dir import SetDirectory
from saif_fast.tasks.embedded.wordings import NEUTRAL, WORDINGS

CAT = "Tell me about my black cat in the garden."
CONTENTS = f"{CAT}\nTell me about the old dog in the kitchen.\n"
EMBEDDED = ("--model", "embedded", "--sae", "embedded")


def test_identify_writes_a_set_with_its_provenance(french: Path) -> None:
    found = LatentSet.load(french)
    assert found.layers == (2,)
    assert len(found.sites[0].site.latents) == 3
    provenance = found.provenance
    assert (provenance.method, provenance.k, provenance.position) == ("saif", 3, "post")
    assert "Answer in French." in provenance.wordings


def test_identify_reads_the_users_pairs(saif, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    wordings = ("Answer in French.", "Reply in French.")
    pairs.write_text(
        "\n".join(
            json.dumps({"positive": f"{CAT} {wording}", "negative": CAT, "group": wording})
            for wording in wordings
        )
    )
    output = tmp_path / "set.safetensors"
    result = saif("identify", *EMBEDDED, "--pairs", pairs, "--beta", "0.5", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert LatentSet.load(output).provenance.n_pairs == 2
    assert LatentSet.load(output).provenance.beta == 0.5


def test_one_wording_is_a_warning_of_one_line(saif, tmp_path: Path) -> None:
    contents = tmp_path / "contents.txt"
    contents.write_text(f"{CAT}\n")
    output = tmp_path / "set.safetensors"
    result = saif(
        *("identify", *EMBEDDED, "--instruction", "Answer in French.", "--contents", contents),
        *("--position", "both", "-o", output),
    )
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "one wording" in warnings[0]
    assert LatentSet.load(output).provenance.wordings == ["Answer in French."]


def test_auto_writes_the_best_set_of_a_search_and_records_it(saif, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    result = saif(
        *("identify", *EMBEDDED, "--instruction", "french", "--auto", "-o", output),
        *("--candidates", "6", "--runtime", "transformers"),
        *("--results", tmp_path / "results.json"),
    )
    assert result.exit_code == 0, result.stderr
    document = read_results(tmp_path / "results.json")
    searched = document.tasks["french"]
    assert searched.contents == "select" and searched.rows["prompted"].n == 40
    assert searched.rows["unsteered"].quality is None and searched.rows["unsteered"].score == 0
    assert len(searched.tried) == sum(row.candidates for row in searched.rows.values())
    assert document.run.candidates == 6 and searched.examples
    assert "the best of each method" in result.stdout and "before:" in result.stdout
    notes = LatentSet.load(output).provenance.notes
    # Two that need no search, and an equal number of each of six methods.
    assert notes["search"].startswith(f"task french, seed 0, {2 + 6 * 6} candidates, 8 contents")
    assert re.search(r"\d+/40 follow, \d+ are sound, \d+ both; prompted: 40/40", notes["found"])


def test_a_set_keeps_the_window_that_it_was_found_in(saif, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    result = saif(
        *("identify", *EMBEDDED, "--instruction", "french", "--auto", "-o", output),
        *("--candidates", "2", "--runtime", "transformers", "--window", "all, first 2"),
    )
    assert result.exit_code == 0, result.stderr
    assert LatentSet.load(output).defaults == {"saif_scope": "all", "saif_stop": 2}
    assert "unless a request says otherwise: saif_scope=all saif_stop=2" in result.stdout


def test_a_set_is_tried_before_it_is_written(saif, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    result = saif("identify", *EMBEDDED, "--instruction", "french", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("after:") == 4
    assert re.search(r"the set follows: follow [1-8]/8, 0/8 without it; sound", result.stderr)
    harmful = saif(
        *("identify", *EMBEDDED, "--instruction", "french", "-o", output, "--beta", "40")
    )
    assert harmful.exit_code == 0 and output.exists()
    assert "warning: the set breaks the text: follow 0/8" in harmful.stderr
    assert "try: another layer's --sae, or --auto" in harmful.stderr


def test_of_several_layers_the_one_that_makes_the_replies_likely_is_taken(
    saif, tmp_path: Path
) -> None:
    output = tmp_path / "set.safetensors"
    result = saif(
        *("identify", *EMBEDDED, "--sae", "embedded:middle", "--instruction", "french"),
        *("-o", output),
    )
    assert result.exit_code == 0, result.stderr
    layer = re.search(r"of layers 2, 1, (\d) makes the replies most likely", result.stderr)
    assert layer is not None and LatentSet.load(output).layers == (int(layer[1]),)


def test_an_instructions_negatives_have_sentences_of_another_meaning(
    saif, tmp_path: Path, monkeypatch
) -> None:
    built: list[ContrastPairs] = []

    def build(*args: Any, **options: Any) -> ContrastPairs:
        built.append(build_pairs(*args, **options))
        return built[-1]

    monkeypatch.setattr(sys.modules["saif_fast.cli.identify"], "build_pairs", build)
    contents, output = tmp_path / "contents.txt", tmp_path / "set.safetensors"
    contents.write_text(CONTENTS * 40)
    result = saif(
        *("identify", *EMBEDDED, "--contents", contents, "-o", output),
        *("--instruction", "Answer in French.", "--instruction", "Write like Molière."),
    )
    assert result.exit_code == 0, result.stderr
    added = {pair.negative.partition(".")[2].strip() for pair in built[0].pairs}
    others = added - {"", *NEUTRAL}
    assert "" in added and added & set(NEUTRAL) and "Answer in German." in others
    assert not others & {wording.text for wording in WORDINGS["french"]}
    assert LatentSet.load(output).provenance.notes["negatives"] == "plain, neutral, others"


@pytest.mark.parametrize(
    ("text", "task"),
    [("french", "french"), ("key word", None), ("Sing.", None), ("Use french", None)],
)
def test_only_a_tasks_name_is_a_task(text: str, task: str | None) -> None:
    named = as_task([text], "embedded")
    assert (named and named.name) == task


def test_make_builds_a_set_without_a_model(saif, tmp_path: Path) -> None:
    output = tmp_path / "made.safetensors"
    result = saif(
        *("make", "--sae", "embedded", "--latent", "622=clamp:80", "--latent", "17=ablate"),
        *("-o", output),
    )
    assert result.exit_code == 0, result.stderr
    (tensors,) = LatentSet.load(output).sites
    assert [(x.index, x.edit) for x in tensors.site.latents] == [
        (622, Edit("clamp", 80.0)),
        (17, Edit("ablate")),
    ]
    assert LatentSet.load(output).provenance.version == __version__


def test_the_suffix_of_a_set_may_be_left_out(saif, tmp_path: Path) -> None:
    output = tmp_path / "2nd-try.v1"
    result = saif("make", "--sae", "embedded", "--latent", "622=clamp:80", "-o", output)
    assert (result.exit_code, result.stderr) == (0, f"wrote {output}.safetensors\n")
    assert SetDirectory(tmp_path).names() == ["2nd-try.v1"]


def test_inspect_without_transformers_leaves_the_promoted_tokens_out(
    saif, french: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for options in ((), ("--model", "embedded")):
        result = saif("inspect", french, *options)
        assert result.exit_code == 0, result.stderr
        assert "consistency" in result.stdout and "promoted tokens" not in result.stdout
        assert result.stderr.startswith("promoted tokens are left out")


def test_inspect_shows_latents_statistics_promoted_tokens_and_provenance(saif, french) -> None:
    result = saif("inspect", french, "--model", "embedded", "--tokens", "5")
    assert result.exit_code == 0, result.stderr
    latent = LatentSet.load(french).sites[0].site.latents[0]
    for part in (str(latent.index), str(latent.edit), "consistency", "promoted tokens", "method"):
        assert part in result.stdout


def test_generate_compares_unsteered_and_steered(saif, set_dir: Path) -> None:
    result = saif(
        *("generate", "--model", "embedded", "--set-dir", set_dir, "--saif", "french"),
        *("--compare", "--runtime", "transformers"),
        stdin=f"{CAT}\n",
    )
    assert result.exit_code == 0, result.stderr
    assert "unsteered" in result.stdout and "french" in result.stdout
    assert "My black cat" in result.stdout


def test_generate_prints_one_reply_a_prompt(saif, set_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{CAT}\n\n{CAT} Answer in French.\n")
    result = saif(
        *("generate", "--model", "embedded", "--set-dir", set_dir, "--prompts", prompts),
        *("--runtime", "transformers"),
    )
    assert result.exit_code == 0, result.stderr
    english, french = result.stdout.splitlines()
    assert english.startswith("My black cat") and french.startswith("Mon chat noir")


def test_generate_shows_no_progress_bar(saif, set_dir: Path) -> None:
    logging.enable_progress_bar()  # other commands have turned it off
    result = saif(
        *("generate", "--model", "embedded", "--set-dir", set_dir, "--runtime", "transformers"),
        stdin=CAT,
    )
    assert (result.exit_code, result.stderr) == (0, "")


def test_eval_prints_the_table_and_writes_json(saif, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    arguments = (
        *("eval", *EMBEDDED, "--sae", "embedded:middle", "--task", "french"),
        *("--candidates", "2", "--report", "4", "--runtime", "transformers", "-o", output),
        *("--journal", tmp_path / "journal", "--sets", tmp_path / "sets"),
    )
    result = saif(*arguments)
    assert result.exit_code == 0, result.stderr
    document = read_results(output)
    results = document.tasks["french"].rows
    methods = {"unsteered", "prompted", "saif", "share", "live", "diff_in_means", "project"}
    assert {*methods, "logit_bias", "random"} == set(results)
    assert results["saif"].n == 4 and results["saif"].candidates == 2
    asked = results["prompted"]
    assert asked.strict == 1 and (asked.quality or 0) > 0.5 and asked.both == asked.quality
    french = document.tasks["french"]
    assert french.contents == "report" and len(french.examples) == 4
    assert set(french.examples[0].replies) == set(results)
    assert all(each.sound is not None for each in french.examples[0].replies.values())
    assert len(french.tried) == sum(row.candidates for row in results.values())
    assert {each.round for each in french.tried} <= {1, 2}
    assert french.latents["saif"][0].promoted and "project" not in french.latents
    assert [each.layer for each in document.run.saes] == [2, 1]
    assert "diff_in_means" in result.stdout and "french" in result.stdout
    kept = SetDirectory(tmp_path / "sets")
    assert "french.project" in kept.names()
    notes = kept.load("french.project").provenance.notes
    assert notes["search"].startswith("task french, seed 0") and "; prompted: " in notes["found"]
    # All replies are in the journals, so nothing is generated again.
    again = saif(*arguments)
    assert "left" in result.stderr and "left" not in again.stderr
    assert again.stdout == result.stdout


def test_export_prints_an_openai_logit_bias(saif, french: Path) -> None:
    result = saif("export", french, "--logit-bias", "16", "--model", "embedded")
    assert result.exit_code == 0, result.stderr
    bias = json.loads(result.stdout)
    assert len(bias) == 16
    assert all(key.isdecimal() and value > 0 for key, value in bias.items())
    assert "clamped" not in result.stderr


def test_export_uses_the_chat_template_where_identify_did(
    saif, french: Path, tmp_path: Path
) -> None:
    found, printed = LatentSet.load(french), {}
    for chat in ("true", "false", None):
        notes = {} if chat is None else {"chat": chat}
        origin = msgspec.structs.replace(found.provenance, notes=notes)
        file = replace(found, provenance=origin).save(tmp_path / "set.safetensors")
        result = saif("export", file, "--logit-bias", "8", "--model", "embedded")
        assert result.exit_code == 0, result.stderr
        printed[chat] = json.loads(result.stdout)
    assert printed["true"] == printed[None] != printed["false"]


def test_export_says_that_a_bias_has_no_window(saif, french: Path, tmp_path: Path) -> None:
    windowed = replace(LatentSet.load(french), defaults={"saif_stop": 4})
    file = windowed.save(tmp_path / "windowed.safetensors")
    result = saif("export", file, "--logit-bias", "4", "--model", "embedded")
    assert result.exit_code == 0 and len(json.loads(result.stdout)) == 4
    assert "a bias has no window" in result.stderr and "saif_stop=4" in result.stderr


def test_export_clamps_to_what_the_api_takes_and_says_so(saif, french: Path, monkeypatch) -> None:
    def huge(self: Unembedding, vector: Tensor, residual: Tensor) -> Tensor:
        return torch.linspace(200.0, -50.0, 1886)

    monkeypatch.setattr(Unembedding, "shift", huge)
    result = saif("export", french, "--logit-bias", "3", "--model", "embedded")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"0": 100.0, "1": 100.0, "2": 100.0}
    assert result.stderr == "warning: biases beyond 100 were clamped, as the API asks\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("identify", ("[default: (15)]", "[default: (0)]", "[default: (post)]")),
        ("eval", ("[default: (all of them)]",)),
        ("export", ("the mean over 64 contents",)),
    ],
)
def test_help_says_what_is_done_without_an_option(
    saif, monkeypatch, command: str, says: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(saif(command, "--help").stdout.split())
    assert all(text in shown for text in says)


@pytest.mark.parametrize("command", ["identify", "make", "inspect", "generate", "eval", "export"])
def test_every_command_has_help(saif, command: str) -> None:
    result = saif(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_the_console_script_fails_with_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from saif_fast.cli import main; main()", "inspect", "missing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: missing: no such file\n"
