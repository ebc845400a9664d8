"""Measurement of whether processes grow as requests go by."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import psutil

# Requests: more than the engine keeps reports of, and until the worker's memory has settled, which
# plain vLLM's also grows by a third over the first some thousand.
WARM_UP = 5000
# MiB that a process may grow by in 20,000 requests after the warm-up. The worker of plain vLLM 0.32
# grew by 6 in this loop.
FLAT = 16.0


@dataclass
class Memory:
    """Resident memory of this process and all below it, in MiB, as requests go by."""

    served: list[int] = field(default_factory=list)
    by_process: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, served: int) -> None:
        self.served.append(served)
        ours = psutil.Process()
        for process in (ours, *ours.children(recursive=True)):
            name = f"{process.pid} {process.name()}"
            size = process.memory_info().rss / 2**20
            self.by_process.setdefault(name, []).append(size)

    def last(self) -> str:
        sizes = ", ".join(f"{name} {found[-1]:.1f}" for name, found in self.by_process.items())
        return f"{self.served[-1]} requests; MiB: {sizes}"

    def report(self, judged: bool) -> tuple[dict[str, str], list[str]]:
        """Return rows of the report, and what is wrong."""
        rows, wrong = {}, []
        for name, sizes in self.by_process.items():
            if len(sizes) < len(self.served):
                continue  # helpers of the start
            found = f"{sizes[0]:.1f} MiB at first, {sizes[-1]:.1f} at last"
            if judged:
                begin = next(i for i, n in enumerate(self.served) if n >= WARM_UP)
                slope = statistics.linear_regression(self.served[begin:], sizes[begin:]).slope
                found += (
                    f"; {sizes[begin]:.1f} after {WARM_UP:,} requests, from then on "
                    f"{1000 * slope:+.2f} every 1,000"
                )
                if 20_000 * slope > FLAT:
                    wrong.append(f"memory grows: {name}: {found}")
            rows[f"memory of process {len(rows) + 1}, {name.partition(' ')[2]}"] = found
        return rows, wrong
