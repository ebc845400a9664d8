"""Proof of steering: what was planned and what was done, counted on the device, request by request.

Each hooked layer leaves, for every token it steered, the norms of the change and of the residual
stream. After the step they are compared with the plan and added to the counters of the token's
request. A few flags are copied after the step and read with its output; a report is made when asked
for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saif_kernels import Tally, tally_steps
from saif_kernels.tally import LAST
from saif_kernels.tally import columns as tally_columns
from saif_vllm.reporting import Dose, RequestReport, Totals
from saif_vllm.request import Steered, spelled
from saif_vllm.worker.signals import Signals

_KEPT = 4096  # ended requests that can still be reported on


class Proof:
    """Counters of the requests of a batch, and what they came to for earlier ones.

    Args:
        tally: on the device, one row for each request of a batch.
        layers: hooked layers of this worker, in the tally's order.
        warn_dose: relative dose above which a request is warned of; None: never.
    """

    def __init__(self, tally: Tally, layers: Sequence[int], warn_dose: float | None) -> None:
        self.tally, self._layers = tally, list(layers)
        self._asked: dict[int, Steered] = {}  # by row
        # Rows of requests that have left, read back when a report is asked for. In one table, as
        # thousands of small copies would lie about in the memory.
        self._saved = tally.table.new_empty(_KEPT, tally.table.shape[1])
        self._places = list(range(_KEPT))  # free ones
        self._left: OrderedDict[int, tuple[Steered, int]] = OrderedDict()  # by number, with place
        # Sums of the rows that are no longer kept: tokens, and the doses.
        self._forgotten = tally.table.new_zeros(LAST + len(layers), dtype=torch.float64)
        self.signals = Signals(tally, warn_dose)
        self._sent = 0  # the signals' number of the last step

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name."""
        return {**self.tally.tensors(), "saved": self._saved, "forgotten": self._forgotten}

    def enter(self, row: int, steered: Steered) -> None:
        """A request takes ``row``; one that was here before goes on counting."""
        if steered.admission in self._left:
            _, place = self._left.pop(steered.admission)
            self.tally.table[row].copy_(self._saved[place])
            self._places.append(place)
        self.signals.watch(row, steered)
        self._asked[row] = steered

    def leave(self, row: int) -> None:
        """The request of ``row`` is no longer in the batch: it has ended or was preempted."""
        steered = self._asked.pop(row)
        if not self._places:
            _, (_, oldest) = self._left.popitem(last=False)
            self._forgotten += _sums(self._saved[oldest : oldest + 1])
            self._places.append(oldest)
        place = self._places.pop()
        self._saved[place].copy_(self.tally.table[row])
        self.tally.clear(row)
        self.signals.forget(row)
        self._left[steered.admission] = steered, place

    def forget(self, steered: Steered) -> None:
        """A request that has left was never there."""
        _, place = self._left.pop(steered.admission)
        self._places.append(place)

    def count(self, token_row: Tensor) -> None:
        """Add the step that has run.

        Raises:
            RuntimeError: in this or an earlier step a token was planned and not steered. A GPU's
                steps raise at the latest when their output is read, see :meth:`nonfinite`.
        """
        tally_steps(token_row, self.tally)
        self._sent = self.signals.send()
        self.signals.read()

    def nonfinite(self) -> Callable[[], tuple[int, ...]]:
        """Of the step that was counted last: a function that waits for it, and says of which
        requests (by admission) a token was not finite.
        """
        sent = self._sent

        def wait() -> tuple[int, ...]:
            self.signals.read(until=sent)
            return self.signals.take_nonfinite(until=sent)

        return wait

    def totals(self) -> Totals:
        """Of all requests there have been; waits for the device."""
        _, rows = self._remembered()
        sums = (_sums(rows) + self._forgotten).tolist()
        planned, steered, shortened, nonfinite = map(int, sums[:LAST])
        dose = dict(zip(self._layers, sums[LAST:], strict=True))
        return Totals(planned, steered, shortened, nonfinite, dose)

    def report(self) -> list[RequestReport]:
        """Of all requests that are remembered, oldest first; waits for the device."""
        found, tables = self._remembered()
        counts, dose_sum, dose_max = (columns.tolist() for columns in tally_columns(tables.cpu()))
        return [
            RequestReport(
                request_id=steered.request_id,
                admission=steered.admission,
                sets=spelled(steered),
                content_hashes=tuple(use.content_hash for use in steered.sets),
                planned=planned,
                steered=done,
                shortened=shortened,
                nonfinite=nonfinite,
                dose={
                    layer: Dose(total / done if done else 0.0, most)
                    for layer, total, most in zip(self._layers, totals, highest, strict=True)
                },
            )
            for steered, (planned, done, shortened, nonfinite, _), totals, highest in zip(
                found, counts, dose_sum, dose_max, strict=True
            )
        ]

    def _remembered(self) -> tuple[list[Steered], Tensor]:
        """Requests, oldest first, and their rows of the tally's table."""
        self.signals.read(until=self._sent)
        now = {x.admission: (x, len(self._saved) + row) for row, x in self._asked.items()}
        found = [entry for _, entry in sorted({**self._left, **now}.items())]
        rows = torch.cat([self._saved, self.tally.table])
        return [steered for steered, _ in found], rows[[place for _, place in found]]


def _sums(rows: Tensor) -> Tensor:
    """Of rows of a tally's table: tokens (all counts but the position), doses by layer; fp64."""
    counts, dose_sum, _ = tally_columns(rows)
    return torch.cat([counts[:, :LAST].double(), dose_sum.double()], dim=1).sum(0)
