from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from one_sentence import sentence

from saif_fast import embedded
from saif_fast.studies import STUDIES, Share, read_studies

EMBEDDED = ("--model", "embedded", "--sae", "embedded")
# The package has a function of that name.
STUDY_COMMAND = sys.modules["saif_fast.cli.study"]
SMALL = ("--report", "4", "--select", "2", "--pairs", "32", "--runtime", "transformers")


def test_help_lists_every_study_and_its_place_is_after_eval(saif) -> None:
    shown = saif("study", "--help").stdout
    assert all(f"{name}:" in shown for name in STUDIES)
    commands = saif("--help").stdout
    assert commands.index(" eval ") < commands.index(" study ") < commands.index(" export ")


def test_a_study_prints_its_table_and_verdict_and_writes_both(saif, tmp_path: Path) -> None:
    file = tmp_path / "new" / "study.json"
    result = saif("study", "k", *EMBEDDED, *SMALL, "--instruction", "french", "-o", file)
    assert result.exit_code == 0, result.stderr
    (found,) = read_studies(file)
    assert f"k: {found.verdict}" in result.stdout and found.claim in result.stdout
    assert found.provenance["runtime"] == "transformers"
    assert found.provenance["instructions"] == "french"
    assert found.settings["report"] == 4


def test_what_only_reads_starts_no_engine(saif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STUDY_COMMAND, "pick_runtime", lambda *_: pytest.fail("it picked one"))
    result = saif("study", "proximity", *EMBEDDED, "--pairs", "32", "--instruction", "french")
    assert result.exit_code == 0, result.stderr
    assert "proximity: " in result.stdout


def test_a_study_without_matter_says_why(saif) -> None:
    result = saif("study", "layer", *EMBEDDED, *SMALL, "--instruction", "french")
    assert result.exit_code == 0, result.stderr
    assert "layer: left out: it needs SAEs of several layers" in result.stdout


def test_two_models_of_one_shape_are_compared(saif, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(embedded.model_path(), base)
    result = saif(
        *("study", "base_instruct", *EMBEDDED, "--model", base, *SMALL),
        *("--instruction", "embedded:french"),
    )
    assert result.exit_code == 0, result.stderr
    assert "reproduced on these models: embedded:french: overlap 1.00 at layer 2" in result.stdout


def test_a_model_whose_replies_cannot_be_judged_has_latents_but_no_figures(
    saif, tmp_path: Path
) -> None:
    file, bare = tmp_path / "study.json", tmp_path / "bare"
    shutil.copytree(embedded.model_path(), bare)
    (bare / "chat_template.jinja").unlink()  # without it this model repeats itself
    result = saif(
        *("study", "base_instruct", *EMBEDDED, "--model", bare, *SMALL, "-o", file),
        *("--instruction", "embedded:french"),
    )
    assert result.exit_code == 0, result.stderr
    (found,) = read_studies(file)
    assert found.table is not None
    ((*_, overlap, prompted, other, _, _),) = found.table.rows
    assert isinstance(overlap, float) and isinstance(prompted, Share) and other is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colour", *EMBEDDED), "study: expected all or one of wordings, "),
        (("k", *EMBEDDED, "--instruction", "Answer in French."), "whose verifier tells what"),
        (("k", *EMBEDDED, "--instruction", "title"), "task: expected one for model embedded"),
        (("k", "--model", "embedded", "--sae", "smollm2:14"), "expected the model's 64, got 576"),
        (("k", "--model", "embedded", "--sae", "smollm2:15"), "sae: expected one of smollm2:11"),
        (
            ("sizes", "--model", "smollm2", *EMBEDDED, "--instruction", "title"),
            "expected one that model embedded has too",
        ),
        (
            ("k", *EMBEDDED, "--instruction", "french", "--instruction", "embedded:french"),
            "tasks of different names",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_any_model_is_loaded(
    saif, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(STUDY_COMMAND, "load_model", lambda *_: pytest.fail("it was loaded"))
    assert message in sentence(saif("study", *arguments))
