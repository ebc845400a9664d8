"""The fixture of the GPU benchmarks, and their report in bench/results/<gpu>/."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from device_timing import Loop, copy_bandwidth
from gpu_report import Row, markdown

RESULTS = Path(os.environ.get("SAIF_RESULTS", Path(__file__).parents[1] / "results"))
ROUNDS = 12

Measure = Callable[..., Row]
_rows: list[Row] = []
_bandwidth: list[float] = []


@pytest.fixture(scope="session")
def bandwidth() -> float:
    """Return the bytes per microsecond of a copy, measured in this run."""
    if not _bandwidth:
        _bandwidth.append(copy_bandwidth())
    return _bandwidth[0]


@pytest.fixture
def measure(benchmark, bandwidth: float, pytestconfig: pytest.Config) -> Measure:
    """Return ``measure(op, (T, S, K, d), candidate, floor_bytes=..., baselines=...)``, interleaved.

    The caller checks correctness first.
    """

    def run(
        op: str,
        sizes: tuple[int, int, int, int],
        candidate: Loop,
        *,
        floor_bytes: float = 0,
        baselines: dict[str, Loop] | None = None,
    ) -> Row:
        others = baselines or {}

        def replay_others() -> None:
            for loop in others.values():
                loop.replay()

        benchmark.pedantic(candidate.replay, setup=replay_others, rounds=ROUNDS)
        row = Row(
            op,
            *sizes,
            microseconds=candidate.median(),
            floor=floor_bytes / bandwidth,
            baselines={name: loop.median() for name, loop in others.items()},
        )
        benchmark.extra_info.update(row._asdict())
        _rows.append(row)
        write_results(pytestconfig)  # after each: a lent machine may be taken back
        return row

    return run


def report() -> str:
    """Return all rows so far as Markdown."""
    import triton  # here, since `make bench` reads this file where there may be none

    machine = (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda or torch.version.hip}, "
        f"torch {torch.__version__}, Triton {triton.__version__}, "
        f"Python {platform.python_version()}"
    )
    return markdown(machine, _bandwidth[0], _rows)


def write_results(config: pytest.Config) -> Path | None:
    """Write all rows so far and return their folder; for a part of the suite, write nothing."""
    if config.getoption("keyword") or any("::" in argument for argument in config.args):
        return None  # part of a suite must not replace the whole of it
    gpu = torch.cuda.get_device_name().lower()
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", gpu).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    text = report()
    content = {
        "machine": text.partition("\n")[0].removeprefix("# "),
        "copy_bytes_per_us": _bandwidth[0],
        "rows": [row._asdict() for row in _rows],
    }
    (folder / "kernels.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "kernels.md").write_text(text)
    return folder


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the targets, and where everything was written."""
    if not _rows:
        return
    terminalreporter.section("issue 3's targets")
    terminalreporter.write_line(report().partition("\n## ")[0])
    if folder := write_results(config):
        terminalreporter.write_line(f"written: {folder}")
