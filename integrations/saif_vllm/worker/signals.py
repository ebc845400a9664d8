"""Signals to the host: what it must learn of the device's counters each step, without waiting."""

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
from saif_vllm.request import Steered, format_sets

logger = logging.getLogger("vllm.saif")


class _HostFlags(NamedTuple):
    """A copy of the counters on its way to the host."""

    number: int
    host: Tensor
    arrived: torch.cuda.Event | None  # None: it has arrived
    watched: Mapping[int, Steered]  # the requests of its rows


class Signals:
    """Copies of the counters: one is sent after each step, and read once it has arrived.

    A step's output needs its copy, and may be waited for in a thread of its own. So a lock guards
    reading.

    Args:
        tally: counters on the device.
        warn_dose: dose above which the log warns of a request; None: never.
    """

    def __init__(self, tally: Tally, warn_dose: float | None) -> None:
        self._tally, self._warn_dose = tally, warn_dose
        self._watched: dict[int, Steered] = {}  # by row
        self._snapshot: Mapping[int, Steered] | None = None  # of it; None: it has changed since
        self._number = 0
        self._sent: deque[_HostFlags] = deque()
        self._free_hosts = [self._new_host()]
        self._warned: dict[tuple[str, int], int] = {}  # serial by kind of warning and row
        self._nonfinite: list[tuple[int, int]] = []  # number of the copy, and serial
        self._lock = threading.Lock()

    def watch_row(self, row: int, steered: Steered) -> None:
        """Attribute the counters of ``row`` to this request from now on."""
        self._watched[row], self._snapshot = steered, None

    def forget_row(self, row: int) -> None:
        """Attribute ``row`` to no request from now on; its counters are 0."""
        self._watched.pop(row, None)
        self._snapshot = None

    def send_counters(self) -> int:
        """Send the counters as they are now; return the number of the copy."""
        counts = self._tally.counts
        columns = [self._tally.missed, counts[:, Tally.NONFINITE], counts[:, Tally.SHORTENED]]
        if self._warn_dose is not None:
            columns.append(self._tally.dose_max.amax(1).view(torch.int32))
        flags = torch.cat(columns)
        with self._lock:
            host = self._free_hosts.pop() if self._free_hosts else self._new_host()
        host.copy_(flags, non_blocking=True)
        arrived = None
        if flags.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        if self._snapshot is None:
            self._snapshot = dict(self._watched)
        self._number += 1
        self._sent.append(_HostFlags(self._number, host, arrived, self._snapshot))
        return self._number

    def _new_host(self) -> Tensor:
        n_columns = 2 if self._warn_dose is None else 3
        n_flags = 1 + n_columns * len(self._tally.table)
        return torch.empty(n_flags, dtype=torch.int32, pin_memory=self._tally.missed.is_cuda)

    def read_counters(self, until: int = 0) -> None:
        """Read the copies that have arrived, and wait for those up to the number ``until``.

        Raises:
            RuntimeError: a planned token was not steered.
        """
        while True:
            with self._lock:
                if not self._sent:
                    return
                number, host, arrived, watched = self._sent[0]
                if arrived is None or arrived.query():
                    self._sent.popleft()
                    self._free_hosts.append(host)
                    self._evaluate(number, host, watched)
                    continue
            if number > until:
                return
            arrived.synchronize()  # Not under the lock: the next step is sent meanwhile.

    def take_nonfinite(self, until: int) -> tuple[int, ...]:
        """Return the serials of requests with a token that was not finite, found since the last
        call.

        A request is found again in each further step that it runs in.

        Args:
            until: number of the last copy that counts.
        """
        with self._lock:
            found = {serial for number, serial in self._nonfinite if number <= until}
            self._nonfinite = [entry for entry in self._nonfinite if entry[0] > until]
        return tuple(sorted(found))

    def _evaluate(self, number: int, host: Tensor, watched: Mapping[int, Steered]) -> None:
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
            if (serial := watched[row].serial) >= 0:  # not the canary's
                self._nonfinite.append((number, serial))
        for row in shortened.nonzero()[0].tolist():
            self._warn_once(
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
                self._warn_once(
                    "dose",
                    row,
                    watched[row],
                    f"steering changes the residual stream by {highest[row]:.3g} times its norm",
                )

    def _warn_once(self, kind: str, row: int, steered: Steered, sentence: str) -> None:
        """Log a warning, once per kind, request and stay in a row."""
        if steered.serial < 0:  # the canary's
            return
        if self._warned.get((kind, row)) != steered.serial:
            self._warned[kind, row] = steered.serial
            logger.warning(
                "request %s (%s): %s", steered.request_id, format_sets(steered), sentence
            )
