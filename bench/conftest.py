"""Interleaved comparisons: each round runs the baseline on both sides of the candidate.

What comes first in one round comes last in the next, so noise hits them alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from bench.comparison import WARM_UP, Timed, figures, report
from bench.machine import RESULTS, machine

# Before torch reads it, here and in vLLM: on a shared machine a second thread mostly waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

Compare = Callable[..., float]
_rows: list[dict[str, Any]] = []


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Compare:
    """``compare(candidate, baseline, baseline_name=...)`` times both, interleaved.

    Returns the median of the rounds' ratios, candidate over baseline: below 1 the candidate is
    faster. Times are seconds of wall clock; the CPU time of this process is in the results beside
    them, as others on the machine do not count there. Correctness is the caller's to check first.
    ``target`` is the least throughput wanted, of the candidate over the baseline.
    """

    def run(
        candidate: Callable[[], object],
        baseline: Callable[[], object],
        *,
        baseline_name: str,
        rounds: int = 30,
        target: float | None = None,
    ) -> float:
        measured, plain, control = Timed(candidate), Timed(baseline), Timed(baseline)

        def first() -> None:
            (plain if len(measured.wall) % 2 == 0 else control)()

        def last() -> None:
            (control if len(plain.wall) == len(measured.wall) else plain)()

        # pytest-benchmark calls setup before and teardown after each timed round.
        benchmark.pedantic(
            measured, setup=first, teardown=last, rounds=rounds, warmup_rounds=WARM_UP
        )
        row = {
            "suite": request.node.path.stem.removeprefix("bench_"),
            "case": request.node.name,
            "baseline": baseline_name,
            "rounds": rounds,
            "target": target,
            **figures(measured, plain, control),
        }
        benchmark.extra_info.update(row)
        _rows.append(row)
        return float(row["ratio"])

    return run


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the ratios; `make bench` also writes them to bench/results/cpu/, a file per suite."""
    found = machine()
    # Part of a suite must not replace the whole of it.
    part = config.getoption("keyword") or any("::" in argument for argument in config.args)
    whole = config.getoption("benchmark_only") and not part
    for suite in sorted({str(row["suite"]) for row in _rows}):
        rows = [row for row in _rows if row["suite"] == suite]
        text = report(found, rows)
        terminalreporter.section(f"{suite}: interleaved in this run")
        terminalreporter.write_line(text)
        if whole:
            folder = RESULTS / "cpu"
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"machine": found, "rows": rows}, indent=1)
            (folder / f"{suite}.json").write_text(content + "\n")
            (folder / f"{suite}.md").write_text(text)
