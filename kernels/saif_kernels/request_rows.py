"""The sets and the window of each request, as device tables with one row per request."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OPEN_STOP = 2**31 - 1  # the stop of a window without an end

# The first columns of a request row; M set slots and M strengths follow.
PROMPT_LEN, PROMPT, START, STOP, OMEGA, POWER, N_SCALARS = range(7)


class Window(NamedTuple):
    """The positions of a request that are steered, and how strongly.

    Semantics: with ``g = position - (prompt_len - 1)``, so that g = 0 is the last prompt token,
    whose residual yields the first generated token ::

        scale = prompt                                                    where g < 0
        scale = (start <= g < stop) / (1 + omega * (g - start)) ** power  where g >= 0

    The decay is that of arXiv 2510.01246.
    """

    prompt: bool = False  # steer the prompt's positions before its last token
    start: int = 0  # in generated tokens
    stop: int = OPEN_STOP  # in generated tokens, exclusive
    omega: float = 0.0  # decay per generated token; 0 is none
    power: float = 3.0


class RequestRows:
    """N request rows of at most M (set slot, strength) pairs each, shared by all hooked layers.

    All columns are views of one table, so that a row is written in one copy.

    Args:
        table: [N, 6 + 2 * M] int32, contiguous; fp32 columns hold the bits of their values.

    Attributes:
        table: as given.
        prompt_len: [N] int32, tokens.
        prompt: [N] int32, 1 = the prompt is steered before its last token, too.
        start: [N] int32, generated tokens.
        stop: [N] int32, generated tokens, exclusive.
        omega: [N] fp32.
        power: [N] fp32.
        set_slot: [N, M] int32, -1 = none.
        strength: [N, M] fp32.
    """

    def __init__(self, table: Tensor) -> None:
        n_pairs = (table.shape[1] - N_SCALARS) // 2
        values = table.view(torch.float32)
        self.table = table
        self.prompt_len, self.prompt, self.start, self.stop = table[:, :OMEGA].unbind(1)
        self.omega, self.power = values[:, OMEGA:N_SCALARS].unbind(1)
        self.set_slot = table[:, N_SCALARS : N_SCALARS + n_pairs]
        self.strength = values[:, N_SCALARS + n_pairs :]
        self._packed = struct.Struct(f"=4i2f{n_pairs}i{n_pairs}f")

    @classmethod
    def allocate(
        cls, max_requests: int, max_sets_per_request: int, device: torch.device | str
    ) -> RequestRows:
        """Return empty rows: they have no set, so they steer nothing."""
        shape = (max_requests, N_SCALARS + 2 * max_sets_per_request)
        rows = cls(torch.zeros(shape, dtype=torch.int32, device=device))
        rows.set_slot.fill_(-1)
        return rows

    def write_row(
        self,
        row: int,
        pairs: Sequence[tuple[int, float]],
        prompt_len: int,
        window: Window = Window(),  # noqa: B008  (an immutable NamedTuple)
    ) -> None:
        """Fill ``row``, in one copy for which the host does not wait.

        Args:
            row: the request's.
            pairs: (set slot, strength) of each set, at most M; the rest of the row is emptied.
            prompt_len: tokens of the prompt.
            window: the positions that are steered.

        Examples:
            >>> rows.write_row(0, [(slot, 1.2)], prompt_len=9, window=Window(start=4))
        """
        padding = self.set_slot.shape[1] - len(pairs)
        assert padding >= 0
        assert all(math.isfinite(strength) for _, strength in pairs)
        packed = self._packed.pack(
            prompt_len,
            *window,
            *(slot for slot, _ in pairs),
            *[-1] * padding,
            *(strength for _, strength in pairs),
            *[0.0] * padding,
        )
        copy_from_host(self.table[row], torch.frombuffer(bytearray(packed), dtype=torch.int32))

    def clear_row(self, row: int) -> None:
        """Make ``row`` steer nothing."""
        self.write_row(row, [], prompt_len=0)


def copy_from_host(target: Tensor, host: Tensor) -> None:
    """Copy ``host`` into ``target`` without waiting for the device.

    The host would wait for a copy from pageable memory, so it is pinned first. PyTorch keeps the
    pinned block until the copy is done: ``host`` may be freed at once.
    """
    target.copy_(host.pin_memory() if target.is_cuda else host, non_blocking=True)
