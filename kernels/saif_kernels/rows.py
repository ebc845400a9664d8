"""What each request asks for, as device tables with one row a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OPEN_STOP = 2**31 - 1  # "until the end" as an int32


class Window(NamedTuple):
    """Which positions of a request are steered, and how strongly.

    With ``g = position - (prompt_len - 1)``, so that g = 0 is the last prompt token, whose
    residual yields the first generated token:

    Semantics: ``scale = (prompt if g < 0 else start <= g < stop) / (1 + omega * max(g - start, 0))
    ** power`` for g >= 0, and ``scale = prompt`` for g < 0. The decay is that of arXiv 2510.01246.
    """

    prompt: bool = False  # steer the prompt's positions before its last token
    start: int = 0  # in generated tokens
    stop: int = OPEN_STOP  # in generated tokens, exclusive
    omega: float = 0.0  # decay per generated token; 0 is none
    power: float = 3.0


class RequestRows(NamedTuple):
    """N request rows of at most M (set slot, strength) pairs each, shared by all hooked layers."""

    set_slot: Tensor  # [N, M] int32, -1 = none
    strength: Tensor  # [N, M] fp32
    prompt_len: Tensor  # [N] int32, tokens
    prompt: Tensor  # [N] bool
    start: Tensor  # [N] int32, generated tokens
    stop: Tensor  # [N] int32, generated tokens, exclusive
    omega: Tensor  # [N] fp32
    power: Tensor  # [N] fp32

    @classmethod
    def allocate(
        cls, max_requests: int, max_sets_per_request: int, device: torch.device | str
    ) -> RequestRows:
        """Empty rows: no set, so they steer nothing."""

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(max_requests, dtype=dtype, device=device)

        shape = (max_requests, max_sets_per_request)
        return cls(
            set_slot=torch.full(shape, -1, dtype=torch.int32, device=device),
            strength=torch.zeros(shape, dtype=torch.float32, device=device),
            prompt_len=column(torch.int32),
            prompt=column(torch.bool),
            start=column(torch.int32),
            stop=column(torch.int32),
            omega=column(torch.float32),
            power=column(torch.float32),
        )

    def write(
        self,
        row: int,
        pairs: Sequence[tuple[int, float]],
        prompt_len: int,
        window: Window = Window(),  # noqa: B008  (an immutable NamedTuple)
    ) -> None:
        """Fill ``row`` with (slot, strength) pairs and the request's window; the rest of the row
        is emptied.
        """
        assert len(pairs) <= self.set_slot.shape[1]
        assert all(math.isfinite(strength) for _, strength in pairs)
        padding = self.set_slot.shape[1] - len(pairs)
        self.set_slot[row] = torch.tensor(
            [slot for slot, _ in pairs] + [-1] * padding, dtype=torch.int32
        )
        self.strength[row] = torch.tensor([s for _, s in pairs] + [0.0] * padding)
        self.prompt_len[row] = prompt_len
        self.prompt[row] = window.prompt
        self.start[row] = window.start
        self.stop[row] = window.stop
        self.omega[row] = window.omega
        self.power[row] = window.power

    def clear(self, row: int) -> None:
        """Make ``row`` steer nothing."""
        self.set_slot[row] = -1
        self.strength[row] = 0.0
