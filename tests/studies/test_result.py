from __future__ import annotations

from pathlib import Path

import pytest

from saif_fast.studies.result import (
    Matrix,
    Share,
    StudyResult,
    Table,
    both_hold,
    larger,
    outcome_of,
    read_studies,
    write_studies,
)

RESULT = StudyResult(
    "k",
    "One is not enough.",
    "reproduced",
    "reproduced on this model: 1: 0/4, 5: 4/4",
    Table(["k", "beta", "follow", "note"], [[1, 0.5, Share.of(0, 4), None], [5, 0.5, None, "x"]]),
    Matrix("overlap", ["a"], ["a", "b"], [[1.0, None]]),
    {"seed": 0},
    {"model": "m"},
)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    # scipy's fisher_exact, alternative "greater": 8 against 1 has p 0.0113, 7 against 2 0.0683.
    [(20, 4, True), (8, 1, True), (7, 2, None), (12, 12, False), (4, 20, False)],
)
def test_larger_is_sure_unclear_or_not(one: int, other: int, expected: bool | None) -> None:
    assert larger(Share.of(one, 24), Share.of(other, 24)) is expected


def test_one_success_of_few_is_not_surely_more_than_none_of_many() -> None:
    assert larger(Share.of(1, 15), Share.of(0, 200)) is None  # p is 15 / 215


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([True, True], "reproduced"),
        ([True, False], "partly reproduced"),
        ([True, None], "partly reproduced"),
        ([False, None], "undecided"),
        ([False, False], "not reproduced"),
        ([], "undecided"),
    ],
)
def test_parts_make_an_outcome(parts: list[bool | None], expected: str) -> None:
    assert outcome_of(parts) == expected


def test_two_parts_hold_if_both_do() -> None:
    assert both_hold(True, True) is True
    assert both_hold(True, None) is None
    assert both_hold(None, False) is False


def test_what_is_written_is_read(tmp_path: Path) -> None:
    left_out = StudyResult("layer", "The last is best.", None, "left out: one SAE")
    write_studies([RESULT, left_out], tmp_path / "study.json")
    assert read_studies(tmp_path / "study.json") == [RESULT, left_out]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2, "results": []}', "expected format 1, got 2"),
        ('{"rows": []}', "expected the results of studies, got"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "study.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_studies(file)
