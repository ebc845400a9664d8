"""Inputs of prepare_steps_: a batch of requests at any point of their way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from saif_kernels import RequestRows, Window


class Span(NamedTuple):
    """One request's tokens of a step."""

    row: int  # -1 = unsteered
    first: int  # position of its first token
    length: int  # 0 = none in this step


class Steps(NamedTuple):
    """Arguments of ``torch.ops.saif.prepare_steps_``; the outputs are poisoned."""

    token_row: Tensor
    token_scale: Tensor
    query_start_loc: Tensor
    request_row: Tensor
    positions: Tensor
    table: Tensor


def make_steps(
    spans: Sequence[Span],
    rows: RequestRows,
    *,
    n_padding: int = 0,
    dtype: torch.dtype = torch.int64,
) -> Steps:
    """Padding has a place in the outputs, and no position that could be read."""
    device = rows.table.device
    lengths = torch.tensor([0, *(span.length for span in spans)])
    positions = [span.first + i for span in spans for i in range(span.length)]
    n_tokens = len(positions) + n_padding
    return Steps(
        token_row=torch.full((n_tokens,), 77, dtype=torch.int32, device=device),
        token_scale=torch.full((n_tokens,), torch.nan, device=device),
        query_start_loc=lengths.cumsum(0).int().to(device),
        request_row=torch.tensor([s.row for s in spans], dtype=torch.int32, device=device),
        positions=torch.tensor(positions, dtype=dtype, device=device),
        table=rows.table,
    )


def random_steps(
    n_requests: int = 8,
    n_tokens: int = 100,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
) -> Steps:
    """A step of ``n_tokens`` among which the requests' borders fall at random, with padding."""
    generator = torch.Generator().manual_seed(seed)

    def random(high: int, n: int) -> list[int]:
        return torch.randint(0, high, (n,), generator=generator).tolist()

    rows = RequestRows.allocate(n_requests, 1, device)
    columns = zip(*(random(40, n_requests) for _ in range(5)), strict=True)
    for row, (prompt_len, prompt, start, length, omega) in enumerate(columns):
        window = Window(bool(prompt % 2), start, start + 1 + 4 * length, omega / 40, 2.0)
        rows.write_row(row, [(0, 1.0)], 1 + prompt_len, window)
    borders = [0, *sorted(random(n_tokens, n_requests - 1)), n_tokens - n_tokens // 8]
    lengths = [max(0, end - begin) for begin, end in pairwise(borders)]
    asked = [row if i % 4 else -1 for i, row in enumerate(random(n_requests, n_requests))]
    spans = [Span(*span) for span in zip(asked, random(60, n_requests), lengths, strict=True)]
    return make_steps(spans, rows, n_padding=n_tokens - sum(lengths))
