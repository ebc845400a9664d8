"""The device tables of one worker: who is steered by what, and what each hooked layer adds.

All are allocated once and filled in place, since a CUDA graph keeps the pointers it captured. They
are buffers of the model, so that vLLM's sleep mode keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saif_kernels import RequestRows, SteeringBank, prepare_steps, steer_
from saif_kernels.rows import copy_to
from saif_vllm.request import read


@dataclass(frozen=True, slots=True, eq=False)
class BatchRequest:
    """One request of a batch, as a model runner knows it: one object as long as it runs.

    Identity is what counts: ids of requests come back, and comparing is no work in every step.
    """

    request_id: str
    extra_args: Mapping[str, object] | None
    prompt_len: int  # tokens


class StepTables(nn.Module):
    """The batch of the current step: a row per steered request, a row and a scale per token.

    Rows are derived from the batch at every step, and nothing is told when a request ends: so
    preemption, re-ordering, aborts and recycled ids need no care.

    Args:
        slots: set slot by content hash.
        rows: one for each request of a batch, and the last one for the start-up canary.
        max_tokens: in a batch.
    """

    def __init__(self, slots: Mapping[str, int], rows: RequestRows, max_tokens: int) -> None:
        super().__init__()
        self.slots, self.rows = slots, rows
        self.canary_row = max_requests = len(rows.prompt_len) - 1
        device = rows.prompt_len.device
        # vLLM refills buffers in place, so views of this one stay what they are.
        self.register_buffer("request_rows", rows.table, persistent=False)
        self.register_buffer("token_row", None, persistent=False)
        self.register_buffer("token_scale", None, persistent=False)
        self.token_row: Tensor = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        self.token_scale: Tensor = torch.zeros(max_tokens, device=device)
        self._batch: list[BatchRequest] = []
        self._request_row = torch.empty(0, dtype=torch.int32, device=device)  # of the batch
        self._held: dict[BatchRequest, int] = {}  # rows of the batch's requests, -1 = unsteered
        self._free = list(reversed(range(max_requests)))
        self._filled = 0  # tokens from here on have row -1
        self.forced = False

    def begin_step(
        self,
        batch: Iterable[BatchRequest],
        query_start_loc: Tensor,
        positions: Tensor,
        n_tokens: int,
    ) -> None:
        """Fill the token tables before a forward: one launch, or none where nothing is steered.

        Args:
            batch: requests in batch order.
            query_start_loc: [requests + 1] int32 on the device.
            positions: [>= query_start_loc[-1]] int32 or int64 on the device.
            n_tokens: an upper bound of the batch's tokens; padding beyond is never steered.
        """
        if self.forced:
            return
        batch = list(batch)
        # A decode step mostly has the batch of the step before.
        moved = batch != self._batch
        if moved:
            self._assign(batch)
        steers = len(self._free) < self.canary_row
        if not (steers or self._filled):
            return
        if moved:
            # Quicker than torch.tensor, by 10 us for 256 requests.
            rows = np.fromiter(map(self._held.__getitem__, batch), np.int32, len(batch))
            self._request_row = self._request_row.new_empty(len(batch))
            copy_to(self._request_row, torch.from_numpy(rows))
        n_written = max(n_tokens, self._filled)
        prepare_steps(
            token_row=self.token_row[:n_written],
            token_scale=self.token_scale[:n_written],
            query_start_loc=query_start_loc,
            request_row=self._request_row,
            positions=positions,
            rows=self.rows,
        )
        self._filled = n_tokens if steers else 0

    def force_row(self, row: int | None) -> None:
        """Give every token ``row`` and scale 1, whatever the batch; None ends that."""
        self.forced = row is not None
        self.token_row.fill_(-1 if row is None else row)
        self.token_scale.fill_(0.0 if row is None else 1.0)

    def _assign(self, batch: list[BatchRequest]) -> None:
        """Give each steered request a row; those that are gone give theirs back first."""
        held = self._held
        for request in held.keys() - set(batch):
            if (row := held.pop(request)) >= 0:
                self._free.append(row)
        for request in batch:
            if request not in held:
                held[request] = self._take_row(request)
        self._batch = batch

    def _take_row(self, request: BatchRequest) -> int:
        steered = read(request.extra_args)
        if steered is None:
            return -1
        row = self._free.pop()
        pairs = [(self.slots[use.content_hash], use.strength) for use in steered.sets]
        self.rows.write(row, pairs, request.prompt_len, steered.window)
        return row


class LayerTables(nn.Module):
    """The bank of one hooked layer, and a device counter of the tokens the canary steered."""

    def __init__(self, bank: SteeringBank, step: StepTables) -> None:
        super().__init__()
        self.bank, self.step = bank, step
        _register(self, bank)
        self.register_buffer("n_steered", None, persistent=False)
        self.n_steered: Tensor = torch.zeros((), dtype=torch.int64, device=bank.vector.device)

    def steer(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer ``hidden`` [T, d_model] in place; called by the op."""
        step = self.step
        steer_(hidden, residual, self.bank, step.rows, step.token_row, step.token_scale)
        if step.forced:  # only the canary asks
            self.n_steered.add_((step.token_row[: hidden.shape[0]] >= 0).sum())


class Steering(nn.Module):
    """All steering tables of one worker, as one child module of the model.

    Args:
        step: tables of the current step.
        layers: tables by decoder layer, of the layers this pipeline rank owns.
        canary_slot: the slot that no set is written to.
    """

    def __init__(
        self, step: StepTables, layers: Mapping[int, LayerTables], canary_slot: int
    ) -> None:
        super().__init__()
        self.step, self.canary_slot = step, canary_slot
        self.tables = dict(layers)
        self.layers = nn.ModuleDict({str(layer): tables for layer, tables in layers.items()})

    @property
    def nbytes(self) -> int:
        """Memory of all tables in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers())


def _register(module: nn.Module, tables: Any) -> None:
    # The same tensors under their names: vLLM's sleep mode saves and refills a model's buffers.
    for name, table in tables._asdict().items():
        module.register_buffer(name, table, persistent=False)
