from __future__ import annotations

from typing import Any

import pytest

from bench.comparison import WARM_UP, Timed, figures, report

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "threads": "1",
    "python": "3",
    "torch": "2",
    "vllm": "0",
}


def timed(*seconds: float) -> Timed:
    found = Timed(lambda: None)
    found.wall = [*[99.0] * WARM_UP, *seconds]
    found.cpu = [2 * x for x in found.wall]
    return found


def row(target: float | None) -> dict[str, Any]:
    # The machine is twice as slow in the last two rounds: no ratio of a round shows it.
    numbers = figures(timed(1, 2, 6, 4), timed(1, 1, 4, 2), timed(1, 1, 2, 2))
    return {"case": "test_x[1]", "baseline": "plain", "target": target, **numbers}


def test_ratios_are_the_rounds_and_warm_up_counts_for_nothing() -> None:
    found = row(None)
    assert (found["seconds"], found["baseline_seconds"]) == (3, 1.5)
    assert found["ratio"] == 1.75 and found["ratio_quartiles"] == [1.375, 2]
    assert found["control"] == 1 and found["control_quartiles"] == [0.875, 1]
    assert found["cpu_ratio"] == 1.75


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            None,
            "| test_x[1] | 3000.000 | plain | 1500.000 | 1.750 [1.375, 2.000] "
            "| 1.000 [0.875, 1.000] | 1.750 |",
        ),
        (
            0.95,
            "| test_x[1] | 3000.000 | plain | 1500.000 | 0.571 [0.500, 0.727] "
            "| 1.000 [1.000, 1.143] | 0.571 | 0.95 |",
        ),
    ],
    ids=["ratios", "throughputs"],
)
def test_a_row_has_its_target_its_quartiles_and_the_control(
    target: float | None, line: str
) -> None:
    lines = report(MACHINE, [row(target)]).splitlines()
    assert lines[-1] == line
    assert len({text.count("|") for text in lines[2:]}) == 1
    assert ("target" in lines[2]) == (target is not None)


def test_a_call_is_timed() -> None:
    calls: list[int] = []
    found = Timed(lambda: calls.append(1))
    found()
    found()
    assert len(calls) == len(found.wall) == len(found.cpu) == 2
    assert min(found.wall) > 0
