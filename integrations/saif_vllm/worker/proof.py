"""Proof of steering: which tokens were planned and which were steered, counted on the device.

Each hooked layer leaves, for every token it steered, the norms of the change and of the residual
stream. After the step they are compared with the plan and added to the counters of the token's
request. A few of the counters go to the host after each step (``signals.py``); a report reads them
all when it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saif_kernels import Tally, tally_steps_
from saif_vllm.reporting import Dose, RequestReport, Totals
from saif_vllm.request import Steered, format_sets
from saif_vllm.worker.signals import Signals

_N_COUNTS = Tally.HIGHEST_POSITION  # columns that count tokens; all come before that one
_KEPT = 4096  # ended requests that can still be reported on


class Proof:
    """Steering counters: one live row per request in the batch, and saved rows of the last
    4096 requests that ended.

    Args:
        tally: the live rows, on the device.
        layers: hooked layers of this worker, in the tally's order.
        warn_dose: dose above which the log warns of a request; None: never.
    """

    def __init__(self, tally: Tally, layers: Sequence[int], warn_dose: float | None) -> None:
        self.tally, self._layers = tally, list(layers)
        self._live: dict[int, Steered] = {}  # by row of the tally
        # One preallocated table, because thousands of small tensors would fragment device memory.
        self._ended_rows = tally.table.new_empty(_KEPT, tally.table.shape[1])
        self._free = list(range(_KEPT))  # rows of it
        # By serial, the oldest first: requests and their rows of the table.
        self._ended: OrderedDict[int, tuple[Steered, int]] = OrderedDict()
        # Sums over the requests that are no longer kept: tokens, and doses by layer.
        self._evicted = tally.table.new_zeros(_N_COUNTS + len(layers), dtype=torch.float64)
        self.signals = Signals(tally, warn_dose)
        self._sent = 0  # number under which the last step's counters were sent

    def tensors(self) -> dict[str, Tensor]:
        """Return the tables by name."""
        return {**self.tally.tensors(), "ended_rows": self._ended_rows, "evicted": self._evicted}

    def take_row(self, row: int, steered: Steered) -> None:
        """Give a request ``row`` of the tally, with its earlier counts if it was preempted."""
        if steered.serial in self._ended:
            _, saved = self._ended.pop(steered.serial)
            self.tally.table[row].copy_(self._ended_rows[saved])
            self._free.append(saved)
        self.signals.watch_row(row, steered)
        self._live[row] = steered

    def release_row(self, row: int) -> None:
        """Save the counters of a request that left the batch: it has ended or was preempted."""
        steered = self._live.pop(row)
        if not self._free:
            _, (_, oldest) = self._ended.popitem(last=False)
            self._evicted += _sum_rows(self._ended_rows[oldest : oldest + 1])
            self._free.append(oldest)
        saved = self._free.pop()
        self._ended_rows[saved].copy_(self.tally.table[row])
        self.tally.clear_row(row)
        self.signals.forget_row(row)
        self._ended[steered.serial] = steered, saved

    def forget_request(self, steered: Steered) -> None:
        """Drop the counters of a request that has ended, as if it had never been."""
        _, saved = self._ended.pop(steered.serial)
        self._free.append(saved)

    def count_step(self, token_row: Tensor) -> None:
        """Add the step that has run to the counters.

        Raises:
            RuntimeError: in this or an earlier step, a planned token was not steered. A GPU's step
                raises no later than when its output is read, see :meth:`nonfinite_of_last_step`.
        """
        tally_steps_(token_row, self.tally)
        self._sent = self.signals.send_counters()
        self.signals.read_counters()

    def nonfinite_of_last_step(self) -> Callable[[], tuple[int, ...]]:
        """Return a function that waits for the step counted last.

        It returns the serials of the requests of which a token was not finite.
        """
        sent = self._sent

        def wait() -> tuple[int, ...]:
            self.signals.read_counters(until=sent)
            return self.signals.take_nonfinite(until=sent)

        return wait

    def totals(self) -> Totals:
        """Sum over all requests since the start; waits for the device."""
        _, rows = self._remembered()
        sums = (_sum_rows(rows) + self._evicted).tolist()
        planned, steered, shortened, nonfinite = map(int, sums[:_N_COUNTS])
        dose = dict(zip(self._layers, sums[_N_COUNTS:], strict=True))
        return Totals(planned, steered, shortened, nonfinite, dose)

    def report(self) -> list[RequestReport]:
        """Report on all remembered requests, oldest first; waits for the device."""
        found, tables = self._remembered()
        counts, dose_sum, dose_max = (columns.tolist() for columns in Tally.columns(tables.cpu()))
        return [
            RequestReport(
                request_id=steered.request_id,
                serial=steered.serial,
                sets=format_sets(steered),
                content_hashes=tuple(use.content_hash for use in steered.sets),
                planned=planned,
                steered=done,
                shortened=shortened,
                nonfinite=nonfinite,
                dose={
                    layer: Dose(total / done if done else 0.0, highest)
                    for layer, total, highest in zip(self._layers, totals, maxima, strict=True)
                },
            )
            for steered, (planned, done, shortened, nonfinite, _), totals, maxima in zip(
                found, counts, dose_sum, dose_max, strict=True
            )
        ]

    def _remembered(self) -> tuple[list[Steered], Tensor]:
        """Return all remembered requests, oldest first, and their rows of counters."""
        self.signals.read_counters(until=self._sent)
        live = {x.serial: (x, len(self._ended_rows) + row) for row, x in self._live.items()}
        found = [entry for _, entry in sorted({**self._ended, **live}.items())]
        rows = torch.cat([self._ended_rows, self.tally.table])
        return [steered for steered, _ in found], rows[[row for _, row in found]]


def _sum_rows(rows: Tensor) -> Tensor:
    """Sum rows of a tally's table: tokens (all counts but the position), doses by layer; fp64."""
    counts, dose_sum, _ = Tally.columns(rows)
    return torch.cat([counts[:, :_N_COUNTS].double(), dose_sum.double()], dim=1).sum(0)
