"""The device tables of one worker: who is steered by what, and what each hooked layer adds.

All are allocated once and filled in place, since a CUDA graph keeps the pointers it captured. They
are buffers of the model, so that vLLM's sleep mode keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saif_kernels import RequestRows, SteeringBank, prepare_steps, steer_
from saif_vllm.request import Steered, read


class BatchRequest(NamedTuple):
    """One request of a batch, as a model runner knows it."""

    request_id: str
    extra_args: Mapping[str, object] | None
    prompt_len: int  # tokens


class _Held(NamedTuple):
    row: int
    asked: object
    prompt_len: int


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
        _register(self, self.rows)
        self.register_buffer("token_row", None, persistent=False)
        self.register_buffer("token_scale", None, persistent=False)
        self.token_row: Tensor = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        self.token_scale: Tensor = torch.zeros(max_tokens, device=device)
        self._held: dict[str, _Held] = {}
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
        """Fill the token tables before a forward.

        Args:
            batch: requests in batch order.
            query_start_loc: [requests + 1] int32 on the device.
            positions: [>= n_tokens] integer on the device.
            n_tokens: an upper bound of the batch's tokens; padding beyond is never steered.
        """
        if self.forced:
            return
        rows = self._assign(batch)
        if not self._held:
            self._clear_tokens(0)
            return
        self._clear_tokens(n_tokens)
        request_row = torch.tensor(rows, dtype=torch.int32)
        if self.token_row.is_cuda:
            request_row = request_row.pin_memory().to(self.token_row.device, non_blocking=True)
        prepare_steps(
            token_row=self.token_row[:n_tokens],
            token_scale=self.token_scale[:n_tokens],
            query_start_loc=query_start_loc,
            request_row=request_row,
            positions=positions,
            rows=self.rows,
        )
        self._filled = n_tokens

    def force_row(self, row: int | None) -> None:
        """Give every token ``row`` and scale 1, whatever the batch; None ends that."""
        self.forced = row is not None
        self.token_row.fill_(-1 if row is None else row)
        self.token_scale.fill_(0.0 if row is None else 1.0)

    def _assign(self, batch: Iterable[BatchRequest]) -> list[int]:
        rows: list[int] = []
        steered: dict[str, int] = {}  # place in the batch
        requests = list(batch)
        for place, request in enumerate(requests):
            rows.append(-1)
            if request.extra_args and "saif" in request.extra_args:
                steered[request.request_id] = place
        for request_id in self._held.keys() - steered.keys():
            self._free.append(self._held.pop(request_id).row)
        for place in steered.values():
            rows[place] = self._row_of(requests[place])
        return rows

    def _row_of(self, request: BatchRequest) -> int:
        assert request.extra_args is not None
        asked, held = request.extra_args["saif"], self._held.get(request.request_id)
        # An id may come back with other wishes: the same dictionary is the same request.
        if held and held.asked is asked and held.prompt_len == request.prompt_len:
            return held.row
        row = held.row if held else self._free.pop()
        steered = read(request.extra_args)
        assert steered is not None
        self.rows.write(row, self._pairs(steered), request.prompt_len, steered.window)
        self._held[request.request_id] = _Held(row, asked, request.prompt_len)
        return row

    def _pairs(self, steered: Steered) -> list[tuple[int, float]]:
        return [(self.slots[use.content_hash], use.strength) for use in steered.sets]

    def _clear_tokens(self, start: int) -> None:
        if self._filled > start:
            self.token_row[start : self._filled].fill_(-1)
            self.token_scale[start : self._filled].zero_()
        self._filled = min(self._filled, start)


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
