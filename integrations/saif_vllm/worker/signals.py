"""What the host must hear of the counters on the device, step by step, without making it wait."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saif_kernels import Tally
from saif_kernels.tally import NONFINITE, SHORTENED
from saif_vllm.request import Steered, spelled

logger = logging.getLogger("vllm.saif")


class _Sent(NamedTuple):
    """A copy of the counters on its way to the host."""

    number: int
    host: Tensor
    arrived: torch.cuda.Event | None  # None: it is there
    watched: Mapping[int, Steered]  # whom its rows are of


class Signals:
    """Counters are sent after each step and read when they are there, or when a step's output is.

    The output of a step may be waited for in a thread of its own, so reading is guarded by a lock.

    Args:
        tally: counters on the device.
        warn_dose: relative dose above which a request is warned of; None: never.
    """

    def __init__(self, tally: Tally, warn_dose: float | None) -> None:
        self._tally, self._warn_dose = tally, warn_dose
        self._watched: dict[int, Steered] = {}  # by row
        self._snapshot: Mapping[int, Steered] | None = None  # of it, as long as it stays the same
        self._number = 0
        self._sent: deque[_Sent] = deque()
        self._hosts = [self._new_host()]  # to send to
        self._told: dict[tuple[str, int], int] = {}  # admission by what was told, and row
        self._nonfinite: list[tuple[int, int]] = []  # admissions, with the number they came by
        self._lock = threading.Lock()

    def watch(self, row: int, steered: Steered) -> None:
        """The counters of ``row`` are those of this request from now on."""
        self._watched[row], self._snapshot = steered, None

    def forget(self, row: int) -> None:
        """Nobody has ``row`` any more; its counters are 0."""
        self._watched.pop(row, None)
        self._snapshot = None

    def send(self) -> int:
        """Send the counters as they are; returns the number by which to read them."""
        counts = self._tally.counts
        columns = [self._tally.missed, counts[:, NONFINITE], counts[:, SHORTENED]]
        if self._warn_dose is not None:
            columns.append(self._tally.dose_max.amax(1).view(torch.int32))
        flags = torch.cat(columns)
        with self._lock:
            host = self._hosts.pop() if self._hosts else self._new_host()
        host.copy_(flags, non_blocking=True)
        arrived = None
        if flags.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        if self._snapshot is None:
            self._snapshot = dict(self._watched)
        self._number += 1
        self._sent.append(_Sent(self._number, host, arrived, self._snapshot))
        return self._number

    def _new_host(self) -> Tensor:
        n_columns = 2 if self._warn_dose is None else 3
        n_flags = 1 + n_columns * len(self._tally.table)
        return torch.empty(n_flags, dtype=torch.int32, pin_memory=self._tally.missed.is_cuda)

    def read(self, until: int = 0) -> None:
        """Read what was sent and has arrived; waits for what was sent up to the number ``until``.

        Raises:
            RuntimeError: a token was planned and not steered.
        """
        while True:
            with self._lock:
                if not self._sent:
                    return
                number, host, arrived, watched = self._sent[0]
                if arrived is None or arrived.query():
                    self._sent.popleft()
                    self._hosts.append(host)
                    self._understand(number, host, watched)
                    continue
            if number > until:
                return
            arrived.synchronize()  # not under the lock: the next step is sent meanwhile

    def take_nonfinite(self, until: int) -> tuple[int, ...]:
        """Requests, by admission, of which a token was found not to be finite since the last call,
        by what was sent up to the number ``until``.

        A request comes again with each further step that it runs in.
        """
        with self._lock:
            found = {admission for number, admission in self._nonfinite if number <= until}
            self._nonfinite = [entry for entry in self._nonfinite if entry[0] > until]
        return tuple(sorted(found))

    def _understand(self, number: int, host: Tensor, watched: Mapping[int, Steered]) -> None:
        missed, flags = int(host.numpy()[0]), host.numpy()[1:]
        if missed:
            raise RuntimeError(
                f"{missed} tokens that should have been steered were not; the engine stops, "
                "since what it would go on to generate is not what was asked for"
            )
        if not flags.any():
            return
        nonfinite, shortened, *dose = flags.reshape(-1, len(self._tally.table))
        for row in nonfinite.nonzero()[0].tolist():
            if (admission := watched[row].admission) >= 0:  # not of the canary
                self._nonfinite.append((number, admission))
        for row in shortened.nonzero()[0].tolist():
            self._tell(
                "shortened",
                row,
                watched[row],
                "steering is weaker than asked for at some tokens, where its change of the "
                "residual stream was cut down to the engine's max_dose, or to what the model's "
                "dtype has room for",
            )
        if self._warn_dose is not None:
            highest = dose[0].view(np.float32)
            for row in (highest > self._warn_dose).nonzero()[0].tolist():
                self._tell(
                    "dose",
                    row,
                    watched[row],
                    f"steering changes the residual stream by {highest[row]:.3g} times its norm",
                )

    def _tell(self, what: str, row: int, steered: Steered, sentence: str) -> None:
        """Once for each request and stay in a row."""
        if steered.admission < 0:  # the canary's
            return
        if self._told.get((what, row)) != steered.admission:
            self._told[what, row] = steered.admission
            logger.warning("request %s (%s): %s", steered.request_id, spelled(steered), sentence)
