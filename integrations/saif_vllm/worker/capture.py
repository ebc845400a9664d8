"""Capture for identification: the residual stream at a request's last prompt token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saif_kernels import copy_from_host


class Wanted(NamedTuple):
    """A request of the batch whose last prompt token is to be captured."""

    request: int  # index in the batch
    place: int  # index in the store
    last_position: int  # of its prompt


class LastTokenCapture:
    """A store of residuals, filled in every step by an op that does not depend on the batch.

    Args:
        n_layers: hooked layers of this worker.
        n_places: residuals that can be kept at a time.
        d_model, dtype, device: of the model.
    """

    def __init__(
        self,
        n_layers: int,
        n_places: int,
        d_model: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.store = torch.zeros(n_layers, n_places, d_model, dtype=dtype, device=device)
        # Per place: the token of the current step to keep there; -1: the place stays as it is.
        self.token = torch.full((n_places,), -1, device=device)
        self._wanted = torch.empty(3, 0, dtype=torch.int64, device=device)
        self._filled = False

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that is allocated at start and keeps its memory, by name."""
        return {"store": self.store, "token": self.token}

    def assign(self, wanted: Sequence[Wanted]) -> None:
        """Set what a new batch wants captured."""
        self._wanted = self._wanted.new_empty(3, len(wanted))
        copy_from_host(
            self._wanted, torch.tensor(wanted, dtype=torch.int64).reshape(-1, 3).T.contiguous()
        )

    def begin_step(self, query_start_loc: Tensor, positions: Tensor) -> None:
        """Find the tokens to keep in a step: a request's last one, if it ends its prompt.

        Args:
            query_start_loc: [requests + 1] int32 on the device.
            positions: [>= query_start_loc[-1]] int32 or int64 on the device.
        """
        if self._filled:
            self.token.fill_(-1)
        self._filled = self._wanted.shape[1] > 0
        if self._filled:
            request, place, last_position = self._wanted
            token = query_start_loc[1:][request].long() - 1
            self.token[place] = torch.where(positions[token] == last_position, token, -1)

    def keep(self, index: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Keep the output of hooked layer ``index`` at these tokens, before it is steered.

        Semantics: ``store[index, place] = round_dtype(hidden + residual)[token[place]]``.

        Args:
            index: of the layer, among the hooked ones.
            hidden, residual: [T, d_model]; residual None: 0.
        """
        chosen = self.token.clamp(min=0)
        x = hidden[chosen] if residual is None else hidden[chosen] + residual[chosen]
        kept = self.store[index]
        kept.copy_(torch.where(self.token[:, None] >= 0, x, kept))
