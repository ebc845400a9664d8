"""The batch of the current step, as device tables: a row per steered request, a row and a scale per
token.

All are allocated once and filled in place, since a CUDA graph keeps the pointers it captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saif_kernels import RequestRows, prepare_steps
from saif_kernels.rows import copy_to
from saif_vllm.request import Steered
from saif_vllm.worker.capture import LastTokenCapture, Wanted
from saif_vllm.worker.proof import Proof


@dataclass(frozen=True, slots=True, eq=False)
class BatchRequest:
    """One request of a batch, as a model runner knows it: one object as long as it runs.

    Identity is what counts: ids of requests come back, and comparing is no work in every step.
    """

    steered: Steered | None
    prompt_len: int  # tokens


class StepTables:
    """Who is steered by what in the current step.

    Rows are derived from the batch at every step, and nothing is told when a request ends: so
    preemption, re-ordering, aborts and recycled ids need no care.

    Args:
        rows: one for each request of a batch.
        proof: counts what was steered.
        max_tokens: in a batch.
        capture: keeps residuals for identification; None: no request asks for that.
    """

    def __init__(
        self,
        rows: RequestRows,
        proof: Proof,
        max_tokens: int,
        capture: LastTokenCapture | None = None,
    ) -> None:
        self.rows, self.proof, self.capture = rows, proof, capture
        device = rows.table.device
        self.token_row = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        self.token_scale = torch.zeros(max_tokens, device=device)
        self._batch: list[BatchRequest] = []
        self._request_row = torch.empty(0, dtype=torch.int32, device=device)  # of the batch
        self._held: dict[BatchRequest, int] = {}  # rows of the batch's requests, -1 = unsteered
        self._free = list(reversed(range(len(rows.table))))
        self._filled = 0  # tokens from here on have row -1
        self._begun = self._rehearses = False

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name."""
        own = {
            "request_rows": self.rows.table,
            "token_row": self.token_row,
            "token_scale": self.token_scale,
        }
        captured = {} if self.capture is None else self.capture.tensors()
        return own | self.proof.tensors() | captured

    def begin(
        self,
        batch: list[BatchRequest],
        query_start_loc: Tensor,
        positions: Tensor,
        n_tokens: int,
    ) -> None:
        """Fill the token tables before a forward: two launches, none where nothing is steered.

        Args:
            batch: requests in batch order; a list that nobody changes afterwards.
            query_start_loc: [requests + 1] int32 on the device.
            positions: [>= query_start_loc[-1]] int32 or int64 on the device.
            n_tokens: an upper bound of the batch's tokens; padding beyond is never steered.
        """
        self._begun = True
        # A decode step mostly has the batch of the step before.
        moved = batch != self._batch
        if moved:
            self._assign(batch)
        if self.capture is not None:
            self.capture.begin(query_start_loc, positions)
        steers = len(self._free) < len(self.rows.table)
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
            token_fresh=self.proof.tally.token_fresh[:n_written],
            counts=self.proof.tally.counts,
        )
        self._filled = n_tokens if steers else 0

    def finish(self) -> None:
        """Count the step whose forward has run.

        Raises:
            RuntimeError: it was not begun; or a token of this step or of an earlier one, since
                nobody waits for a GPU, should have been steered and was not.
        """
        if not self._begun:
            raise RuntimeError("a step ran that was not prepared for steering: the engine stops")
        self._begun = False
        if self._filled:
            self.proof.count(self.token_row[: self._filled])

    def clear(self) -> None:
        """What runs next is a dummy batch: it is not steered, unless in a rehearsal."""
        if self._rehearses or not self._filled:
            return
        self.token_row[: self._filled].fill_(-1)
        self.token_scale[: self._filled].zero_()
        self._filled = 0

    @contextmanager
    def rehearsal(self, request: BatchRequest, n_tokens: int) -> Iterator[None]:
        """A dummy batch that runs inside is a step of ``request``, of its first ``n_tokens``.

        It comes, is steered, is counted and leaves by what does so while serving, which is so
        compiled before; then nothing is left of it.

        Raises:
            RuntimeError: as :meth:`finish`.
        """
        self._rehearses = True
        device = self.token_row.device
        starts = torch.tensor([0, n_tokens], dtype=torch.int32, device=device)
        for dtype in (torch.int32, torch.int64):  # a model runner has one of these
            positions = torch.arange(n_tokens, dtype=dtype, device=device)
            self.begin([request], starts, positions, n_tokens)
        yield
        self.finish()
        self.begin([], starts[:1], positions, 0)
        self._begun = self._rehearses = False
        if request.steered is not None:
            self.proof.forget(request.steered)

    def _assign(self, batch: list[BatchRequest]) -> None:
        """Give each steered request a row; those that are gone give theirs back first."""
        held = self._held
        for request in held.keys() - set(batch):
            if (row := held.pop(request)) >= 0:
                self.proof.leave(row)
                self._free.append(row)
        for request in batch:
            if request not in held:
                held[request] = self._take_row(request)
        self._batch = batch
        if self.capture is not None:
            self.capture.assign(
                [
                    Wanted(i, request.steered.capture, request.prompt_len - 1)
                    for i, request in enumerate(batch)
                    if request.steered is not None and request.steered.capture >= 0
                ]
            )

    def _take_row(self, request: BatchRequest) -> int:
        steered = request.steered
        if steered is None or not steered.sets:
            return -1
        row = self._free.pop()
        pairs = [(use.slot, use.strength) for use in steered.sets]
        self.rows.write(row, pairs, request.prompt_len, steered.window)
        self.proof.enter(row, steered)
        return row
