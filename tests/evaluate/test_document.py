from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from saif_fast.evaluate.document import (
    Machine,
    ResultsDocument,
    Run,
    TaskResults,
    TriedCandidate,
    read_results,
    write_results,
)
from saif_fast.evaluate.results import ResultRow

ROW = ResultRow(0.5, 0.6, 0.4, 0.6, 100, 0.75, 60, {"k": 3, "beta": -1.5}, "vllm")
RUN = Run(
    date="2026-01-02T03:04:05+00:00",
    model="org/model",
    d_model=64,
    num_layers=3,
    chat=True,
    saes=[],
    runtime="vllm",
    versions={"torch": "2"},
    machine=Machine("a processor", 2),
    seed=0,
    candidates=60,
    seconds=1.5,
)
TRIED = TriedCandidate("saif", {"layer": 1}, 2, strict=2, loose=3, sound=4, both=1, n=8)
DOCUMENT = ResultsDocument(
    RUN,
    {
        "french": TaskResults(
            "Answer in French.", "report", 24, {"live": ROW, "unsteered": ROW}, [TRIED]
        )
    },
)


def test_a_document_is_read_as_it_was_written_but_in_the_tables_order(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    write_results(DOCUMENT, file)
    assert read_results(file) == DOCUMENT
    written = json.loads(file.read_text())
    assert written["format"] == 1 and set(written) == {"format", "run", "tasks"}
    assert list(written["tasks"]["french"]["rows"]) == ["unsteered", "live"]
    assert written["tasks"]["french"]["rows"]["live"]["parameters"] == {"k": 3, "beta": -1.5}


def test_the_score_of_a_candidate_is_the_harmonic_mean_and_0_where_quality_was_not_asked() -> None:
    assert TRIED.score == pytest.approx(1 / 3)
    assert msgspec.structs.replace(TRIED, sound=None).score == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "results of saif eval"),
        (b'{"french": {"saif": {"strict": 1.0}}}', "missing required field `format`"),
        (b'{"format": 2}', "expected format 1, got 2"),
        (b'{"format": 1, "run": {}, "tasks": {}}', "missing required field"),
        (b'{"format": 1, "run": "\xff"}', "results of saif eval"),
    ],
)
def test_what_is_no_document_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, says: str
) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        read_results(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_a_missing_file_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_results(tmp_path / "none.json")
