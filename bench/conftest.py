"""Interleaved comparisons: each round runs the baseline, then the candidate, so noise hits both."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "results"

Compare = Callable[..., float]
_rows: list[dict[str, object]] = []


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Compare:
    """``compare(candidate, baseline, baseline_name=...)`` times both, interleaved.

    Returns the ratio of medians, candidate over baseline: below 1 the candidate is faster. Times
    are seconds of wall clock. Correctness is the caller's to check first.
    """

    def run(
        candidate: Callable[[], object],
        baseline: Callable[[], object],
        *,
        baseline_name: str,
        rounds: int = 30,
    ) -> float:
        baseline_seconds: list[float] = []

        def timed_baseline() -> None:
            begin = time.perf_counter()
            baseline()
            baseline_seconds.append(time.perf_counter() - begin)

        # pytest-benchmark calls setup before each timed round: that is what interleaves the two.
        benchmark.pedantic(candidate, setup=timed_baseline, rounds=rounds, warmup_rounds=2)
        candidate_median = benchmark.stats.stats.median
        baseline_median = statistics.median(baseline_seconds[2:])
        ratio = candidate_median / baseline_median
        row = {
            "case": request.node.name,
            "baseline": baseline_name,
            "seconds": candidate_median,
            "baseline_seconds": baseline_median,
            "ratio": ratio,
            "rounds": rounds,
        }
        benchmark.extra_info.update(row)
        _rows.append(row)
        return ratio

    return run


def _machine() -> dict[str, object]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ratios and write them to bench/results/cpu/."""
    if not _rows:
        return
    machine = _machine()
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
        f"torch {machine['torch']}, triton {machine['triton']}. Medians, interleaved; "
        "a ratio below 1 means faster than the baseline.",
        "",
        "| case | ms | baseline | baseline ms | ratio |",
        "|---|---|---|---|---|",
        *(
            f"| {row['case']} | {1e3 * row['seconds']:.3f} | {row['baseline']} "  # type: ignore[operator]
            f"| {1e3 * row['baseline_seconds']:.3f} | {row['ratio']:.3f} |"  # type: ignore[operator]
            for row in _rows
        ),
    ]
    terminalreporter.section("ratios, interleaved in this run")
    terminalreporter.write_line("\n".join(lines))
    folder = RESULTS / "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "rows": _rows}
    (folder / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "bench.md").write_text("\n".join(lines) + "\n")
