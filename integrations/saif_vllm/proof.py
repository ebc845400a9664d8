"""Proof of steering: what was planned and what was done, counted on the device, request by request.

Each hooked layer leaves, for every token it steered, the norms of the change and of the residual
stream. After the step they are compared with the plan and added to the counters of the token's
request. Nothing is read back but a flag, and nobody waits for it; a report is made when asked for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from saif_kernels import Tally, tally_steps
from saif_kernels.tally import STEERED
from saif_kernels.tally import columns as tally_columns
from saif_vllm.request import Steered

logger = logging.getLogger("vllm.saif")
_KEPT = 4096  # ended requests that can still be reported on


class Dose(msgspec.Struct, frozen=True):
    """``|change| / |x|`` over the steered tokens of one request at one layer."""

    mean: float
    max: float


class RequestReport(msgspec.Struct, frozen=True):
    """What was done for one request so far. A token counts once, however often it is computed.

    Attributes:
        request_id: the user's; requests of n > 1 outputs are as many reports.
        admission: the number of the request in its engine.
        sets: set names with strengths, as asked for.
        content_hashes: of these sets: what the names stood for when the request came in.
        planned: tokens inside the request's window.
        steered: those of them that all hooked layers steered; ``planned`` unless something broke.
        dose: by layer.
    """

    request_id: str
    admission: int
    sets: str
    content_hashes: tuple[str, ...]
    planned: int
    steered: int
    dose: dict[int, Dose]

    @property
    def window_reached(self) -> bool:
        """Whether any token was inside the window; a generation may be shorter than its start."""
        return self.planned > 0


class Totals(msgspec.Struct, frozen=True):
    """What was done for all requests since the engine's start.

    Attributes:
        planned, steered: tokens, as in :class:`RequestReport`.
        dose: by layer, the sum of ``|change| / |x|`` over the steered tokens.
    """

    planned: int
    steered: int
    dose: dict[int, float]


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
        # Sums of the rows that are no longer kept: tokens planned and steered, and the doses.
        self._forgotten = tally.table.new_zeros(2 + len(layers), dtype=torch.float64)
        self._flags = _Flags(tally, warn_dose)

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name."""
        return {**self.tally.tensors(), "saved": self._saved, "forgotten": self._forgotten}

    def enter(self, row: int, steered: Steered) -> None:
        """A request takes ``row``; one that was here before goes on counting."""
        if steered.admission in self._left:
            _, place = self._left.pop(steered.admission)
            self.tally.table[row].copy_(self._saved[place])
            self._places.append(place)
        else:
            self.tally.clear(row)
        self._flags.watch(row, steered)
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
        self._left[steered.admission] = steered, place

    def forget(self, steered: Steered) -> None:
        """A request that has left was never there."""
        _, place = self._left.pop(steered.admission)
        self._places.append(place)

    def count(self, token_row: Tensor) -> None:
        """Add the step that has run.

        Raises:
            RuntimeError: in this or an earlier step a token was planned and not steered.
        """
        tally_steps(token_row, self.tally)
        self._look()

    def _look(self, *, wait: bool = False) -> None:
        for steered, dose in self._flags.look(wait=wait):
            logger.warning(
                "request %s (%s): steering changes the residual stream by %.3g times its norm",
                steered.request_id,
                spelled(steered),
                dose,
            )

    def totals(self) -> Totals:
        """Of all requests there have been; waits for the device."""
        _, rows = self._remembered()
        planned, steered, *dose = (_sums(rows) + self._forgotten).tolist()
        return Totals(int(planned), int(steered), dict(zip(self._layers, dose, strict=True)))

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
                dose={
                    layer: Dose(total / done if done else 0.0, most)
                    for layer, total, most in zip(self._layers, totals, highest, strict=True)
                },
            )
            for steered, (planned, done, _), totals, highest in zip(
                found, counts, dose_sum, dose_max, strict=True
            )
        ]

    def _remembered(self) -> tuple[list[Steered], Tensor]:
        """Requests, oldest first, and their rows of the tally's table."""
        self._look(wait=True)
        now = {x.admission: (x, len(self._saved) + row) for row, x in self._asked.items()}
        found = [entry for _, entry in sorted({**self._left, **now}.items())]
        rows = torch.cat([self._saved, self.tally.table])
        return [steered for steered, _ in found], rows[[place for _, place in found]]


def _sums(rows: Tensor) -> Tensor:
    """Of rows of a tally's table: tokens planned and steered, and doses by layer; fp64."""
    counts, dose_sum, _ = tally_columns(rows)
    return torch.cat([counts[:, : STEERED + 1].double(), dose_sum.double()], dim=1).sum(0)


class _Flags:
    """What the host must hear of, without waiting for the device.

    Each copy is read when it is there, and then the next is sent. The device's counts only grow, so
    nothing is lost in between.
    """

    def __init__(self, tally: Tally, warn_dose: float | None) -> None:
        self._tally, self._warn = tally, warn_dose
        n_rows, device = len(tally.table), tally.missed.device
        self._limit = torch.full((n_rows, 1), torch.inf, device=device)
        n_flags = 1 if warn_dose is None else 1 + n_rows
        self._host = torch.zeros(n_flags, pin_memory=device.type == "cuda")
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None
        self._watched: dict[int, Steered] = {}  # by row
        self._sent: dict[int, Steered] | None = None  # whom a copy on its way is of; None: no copy

    def watch(self, row: int, steered: Steered) -> None:
        """Look at the dose of a row's new request."""
        if self._warn is not None:
            self._limit[row] = self._warn
            self._watched[row] = steered

    def look(self, *, wait: bool = False) -> list[tuple[Steered, float]]:
        """Requests whose dose has passed the limit, once each, with that dose.

        Raises:
            RuntimeError: a token was planned and not steered.
        """
        found = self._read(wait)
        if self._sent is None:
            self._send()
            if wait or self._arrived is None:
                found += self._read(wait)
        return found

    def _send(self) -> None:
        flags = self._tally.missed.float()
        if self._warn is not None:
            highest = self._tally.dose_max.amax(1, keepdim=True)
            passed = highest > self._limit
            self._limit.masked_fill_(passed, torch.inf)
            flags = torch.cat([flags, torch.where(passed, highest, 0.0)[:, 0]])
        self._host.copy_(flags, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()
        self._sent = dict(self._watched)

    def _read(self, wait: bool) -> list[tuple[Steered, float]]:
        if self._sent is None:
            return []
        if self._arrived is not None:
            if wait:
                self._arrived.synchronize()
            elif not self._arrived.query():
                return []
        sent, self._sent = self._sent, None
        missed, *doses = self._host.tolist()
        if missed:
            raise RuntimeError(
                f"{missed:.0f} tokens that should have been steered were not; the engine stops, "
                "since what it would go on to generate is not what was asked for"
            )
        return [(sent[row], dose) for row, dose in enumerate(doses) if dose]


def spelled(steered: Steered) -> str:
    """Sets and strengths as a user writes them."""
    return " + ".join(f"{use.name}*{use.strength:g}" for use in steered.sets)
