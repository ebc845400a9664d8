from __future__ import annotations

import pytest
from rich.console import Console

from saif_fast.evaluate.intervals import Accuracy
from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.results import ResultRow, ordered, tables
from saif_fast.evaluate.trials import Choice


def row(strict: int, **parameters: float) -> ResultRow:
    choice = Choice("m", Candidate(parameters=parameters), Accuracy(3, 4, 4), 60)
    return ResultRow.from_choice(choice, Accuracy(strict, 60, 100), "vllm")


ROWS = {"french": {"live": row(7), "saif": row(50, k=3, beta=-1.5), "unsteered": row(0)}}


def test_a_row_knows_counts_and_intervals_of_all_its_shares() -> None:
    saif = ROWS["french"]["saif"]
    assert (saif.strict, saif.loose, saif.n) == (0.5, 0.6, 100)
    assert saif.interval(saif.strict) == (saif.low, saif.high)
    assert (saif.low, saif.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert saif.count(saif.loose) == 60
    assert (saif.candidates, saif.selected, saif.runtime) == (60, 0.75, "vllm")


def test_rows_have_the_tables_order_and_others_come_last() -> None:
    assert ordered(ROWS) == ["unsteered", "saif", "live"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_instruction_is_shown_whole_at_any_width(width: int) -> None:
    rows = {name: ROWS["french"] for name in ("french", "german", "json", "one_word", "twice")}
    console = Console(width=width, record=True)
    shown = tables(rows, "title", width)
    for part in shown:
        console.print(part)
    text = console.export_text()
    assert text.count("50/60 40-60") == len(rows)
    assert text.count("k=3 beta=-1.5") == len(rows)
    assert all(name in text for name in rows)
    assert len(shown) == {40: 5, 80: 2, 200: 1}[width]
