"""Ratios of a candidate to its baseline, timed in the same rounds, and their table.

In each round the baseline runs before and after the candidate. Its second run is the control: the
control's ratio should be 1, and how far it is off shows how much of the candidate's is noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.machine import described

WARM_UP = 2  # rounds


class Timed:
    """A call that notes the seconds it took: wall clock, and CPU time of this process."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self._call()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def figures(measured: Timed, plain: Timed, control: Timed) -> dict[str, Any]:
    """Return medians of the seconds, and medians and quartiles of the ratios within a round."""

    def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
        found = [a / b for a, b in zip(over[WARM_UP:], under[WARM_UP:], strict=True)]
        return statistics.quantiles(found, method="inclusive")

    low, ratio, high = ratios(measured.wall, plain.wall)
    control_low, control_ratio, control_high = ratios(control.wall, plain.wall)
    return {
        "seconds": statistics.median(measured.wall[WARM_UP:]),
        "baseline_seconds": statistics.median(plain.wall[WARM_UP:]),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "control": control_ratio,
        "control_quartiles": [control_low, control_high],
        "cpu_ratio": ratios(measured.cpu, plain.cpu)[1],
    }


def report(found: dict[str, object], rows: list[dict[str, Any]]) -> str:
    """Return the rows of one suite as Markdown; rows with targets are shown as throughputs."""
    targets = any(row["target"] for row in rows)
    what, power = ("throughput", -1) if targets else ("ratio", 1)
    titles = ["case", "ms", "baseline", "baseline ms", what, "control", "of CPU time"]
    meaning = (
        "Throughput is the baseline's time over the candidate's: above 1 the candidate is faster."
        if targets
        else "A ratio is the candidate's time over the baseline's: below 1 the candidate is faster."
    )
    lines = [
        f"{described(found)} Medians, interleaved; in brackets the quartiles of the rounds. "
        f"{meaning} The control is the baseline, timed once more in the same rounds: what it is "
        "off 1 is noise.",
        "",
        f"| {' | '.join([*titles, *['target'] * targets])} |",
        "|---" * (len(titles) + targets) + "|",
    ]
    for row in rows:
        spread = {
            name: sorted(x**power for x in (row[name], *row[f"{name}_quartiles"]))
            for name in ("ratio", "control")
        }
        cells = [
            row["case"],
            f"{1e3 * row['seconds']:.3f}",
            row["baseline"],
            f"{1e3 * row['baseline_seconds']:.3f}",
            *(f"{median:.3f} [{low:.3f}, {high:.3f}]" for low, median, high in spread.values()),
            f"{row['cpu_ratio'] ** power:.3f}",
            *([f"{row['target']:.2f}"] if targets else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
