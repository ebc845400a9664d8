"""The request row and the scale of each token of a step, derived on the device from positions."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl
from saif_kernels.request_rows import (
    N_SCALARS,
    OMEGA,
    POWER,
    PROMPT,
    PROMPT_LEN,
    START,
    STOP,
    RequestRows,
)
from saif_kernels.tally_steps import Tally

# Tokens of a program, and requests that it compares them with at a time: 64 registers per thread,
# and one round of loads for a batch of 256.
_BLOCK_T, _BLOCK_N = 32, 256


def prepare_steps_(
    token_row: Tensor,
    token_scale: Tensor,
    query_start_loc: Tensor,
    request_row: Tensor,
    positions: Tensor,
    rows: RequestRows,
    token_fresh: Tensor | None = None,
    counts: Tensor | None = None,
) -> None:
    """Fill ``token_row`` and ``token_scale`` for one step.

    Semantics: token t of request r (``query_start_loc[r] <= t < query_start_loc[r + 1]``) gets row
    ``request_row[r]`` and the scale of :class:`Window` at ``positions[t]``; every other token,
    padding included, and every token whose scale is 0, gets row -1 and scale 0. ``token_fresh`` is
    a steered token's position where the row has counted no position as high, else -1.

    Everything is derived on the device from what the model itself reads, because host copies of
    token counts are upper bounds under asynchronous scheduling and speculation. No value leaves the
    device.

    A scale without decay is exactly 0 or 1. With decay its relative error is within
    ``2**-22 * (1 + power + |log2(scale)|)``. A scale below ``2**-126`` may be 0.

    Args:
        token_row: [T] int32, written.
        token_scale: [T] fp32, written.
        query_start_loc: [n + 1] int32, first token of each request; non-decreasing.
        request_row: [n] int32, row of each request in ``rows``, -1 = unsteered.
        positions: [>= query_start_loc[n]] int32 or int64, position of each token in its request,
            in tokens.
        rows: the request table.
        token_fresh: [T] int32, written; given together with ``counts`` or not at all.
        counts: [N, 5] int32, of a :class:`~saif_kernels.Tally` of as many rows. Read only.

    Raises:
        ValueError: a shape or dtype does not fit; nothing was written.

    Examples:
        >>> rows = RequestRows.allocate(max_requests=1, max_sets_per_request=1, device="cpu")
        >>> rows.write_row(0, [(0, 1.2)], prompt_len=3)
        >>> token_row, token_scale = torch.empty(3, dtype=torch.int32), torch.empty(3)
        >>> starts, request_row = torch.tensor([[0, 3], [0, -1]], dtype=torch.int32)
        >>> positions = torch.arange(3)
        >>> prepare_steps_(token_row, token_scale, starts, request_row[:1], positions, rows)
        >>> token_row.tolist(), token_scale.tolist()  # the last prompt token is the first steered
        ([-1, -1, 0], [0.0, 0.0, 1.0])
    """
    n_tokens, n_requests = token_row.shape[0], request_row.shape[0]
    _check("token_row", token_row, n_tokens, torch.int32)
    _check("token_scale", token_scale, n_tokens, torch.float32)
    _check("query_start_loc", query_start_loc, n_requests + 1, torch.int32)
    _check("request_row", request_row, n_requests, torch.int32)
    _check("positions", positions, positions.shape[0], torch.int32, torch.int64)
    if token_fresh is not None or counts is not None:
        _check_fresh(token_fresh, counts, n_tokens, rows.table.shape[0])
    torch.ops.saif.prepare_steps_(
        token_row,
        token_scale,
        query_start_loc,
        request_row,
        positions,
        rows.table,
        token_fresh=token_fresh,
        counts=counts,
    )


def _check(name: str, tensor: Tensor, length: int, *dtypes: torch.dtype) -> None:
    if tensor.shape != (length,) or tensor.dtype not in dtypes or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected [{length}] {' or '.join(map(str, dtypes))}, contiguous, "
            f"got {list(tensor.shape)} {tensor.dtype} of strides {tensor.stride()}"
        )


def _check_fresh(
    token_fresh: Tensor | None, counts: Tensor | None, n_tokens: int, n_rows: int
) -> None:
    if token_fresh is None or counts is None:
        missing = "token_fresh" if token_fresh is None else "counts"
        raise ValueError(f"{missing}: expected token_fresh and counts or neither, got None")
    _check("token_fresh", token_fresh, n_tokens, torch.int32)
    fits = counts.shape == (n_rows, Tally.N_COUNTS) and counts.dtype == torch.int32
    if not fits or counts.stride(1) != 1:
        raise ValueError(
            f"counts: expected [{n_rows}, {Tally.N_COUNTS}] {torch.int32} with contiguous rows, "
            f"got {list(counts.shape)} {counts.dtype} of strides {counts.stride()}"
        )


def prepare_steps_torch_(
    token_row: Tensor,
    token_scale: Tensor,
    query_start_loc: Tensor,
    request_row: Tensor,
    positions: Tensor,
    table: Tensor,
    *,
    token_fresh: Tensor | None = None,
    counts: Tensor | None = None,
) -> None:
    """Specify :func:`prepare_steps_`, over the rows' ``table``; also what runs on CPUs."""
    token_row.fill_(-1)
    token_scale.zero_()
    if token_fresh is not None:
        token_fresh.fill_(-1)
    n_requests = request_row.shape[0]
    if n_requests == 0:
        return
    # Tokens beyond the positions are padding.
    n_tokens = min(token_row.shape[0], positions.shape[0])
    token = torch.arange(n_tokens, dtype=torch.int32, device=token_row.device)
    # right=True counts the starts at or before t; one less is the request. Tokens past the last
    # end get n.
    request = torch.searchsorted(query_start_loc, token, right=True) - 1
    inside = (request >= 0) & (request < n_requests)
    row = torch.where(inside, request_row[request.clamp(0, n_requests - 1)], -1)

    asked = table[:, :N_SCALARS].index_select(0, row.clamp(min=0))
    prompt_len, prompt, start, stop = asked[:, :OMEGA].unbind(1)
    omega, power = asked.view(torch.float32)[:, OMEGA:].unbind(1)
    generated = positions[:n_tokens].long() - (prompt_len.long() - 1)
    elapsed = (generated - start).clamp(min=0).float()
    decay = (1.0 + omega * elapsed).pow(-power)
    in_window = (generated >= start) & (generated < stop)
    scale = torch.where(generated < 0, prompt.float(), torch.where(in_window, decay, 0.0))
    scale = torch.where(row >= 0, scale, 0.0)
    token_scale[:n_tokens] = scale
    token_row[:n_tokens] = torch.where(scale != 0, row, -1)
    if token_fresh is not None and counts is not None:
        position = positions[:n_tokens].int()
        fresh = (scale != 0) & (position > counts[:, Tally.HIGHEST_POSITION][row.clamp(min=0)])
        token_fresh[:n_tokens] = torch.where(fresh, position, -1)


@jit(do_not_specialize=["n_tokens", "n_requests"])
def _steps_kernel(
    p_token_row,  # [T] int32, written
    p_token_scale,  # [T] fp32, written
    p_query_start_loc,  # [n + 1] int32
    p_request_row,  # [n] int32
    p_positions,  # [>= query_start_loc[n]] int32 or int64
    p_table,  # [N, TABLE_STRIDE] int32, RequestRows.table
    p_token_fresh,  # [T] int32, written; None with p_counts
    p_counts,  # [N, COUNTS_STRIDE] int32, Tally.counts; or None
    n_tokens,
    n_requests,
    TABLE_STRIDE: tl.constexpr,
    COUNTS_STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PROMPT_LEN: tl.constexpr = PROMPT_LEN,
    PROMPT: tl.constexpr = PROMPT,
    START: tl.constexpr = START,
    STOP: tl.constexpr = STOP,
    OMEGA: tl.constexpr = OMEGA,
    POWER: tl.constexpr = POWER,
    HIGHEST_POSITION: tl.constexpr = Tally.HIGHEST_POSITION,
):
    """Grid (block of tokens,). A block holds tokens of any requests, so that no batch is uneven."""
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < n_tokens
    # A token's request is the number of requests that end at or before it. Counting them all is
    # quicker than a binary search, each of whose steps would wait for a load.
    b_ended = tl.zeros((BLOCK_T, BLOCK_N), tl.int32)
    for i in range(0, n_requests, BLOCK_N):
        o_n = i + tl.arange(0, BLOCK_N)
        b_end = tl.load(p_query_start_loc + 1 + o_n, mask=o_n < n_requests, other=2**31 - 1)
        b_ended += (b_end[None, :] <= o_t[:, None]).to(tl.int32)
    b_request = tl.sum(b_ended, axis=1)
    m_inside = m_t & (b_request < n_requests) & (o_t >= tl.load(p_query_start_loc))
    b_request_row = tl.load(p_request_row + b_request, mask=m_inside, other=-1)

    m_steered = b_request_row >= 0
    p_row = p_table + b_request_row.to(tl.int64) * TABLE_STRIDE
    b_position = tl.load(p_positions + o_t, mask=m_steered, other=0).to(tl.int64)
    b_prompt_len = tl.load(p_row + PROMPT_LEN, mask=m_steered, other=0)
    b_prompt = tl.load(p_row + PROMPT, mask=m_steered, other=0)
    b_start = tl.load(p_row + START, mask=m_steered, other=0)
    b_stop = tl.load(p_row + STOP, mask=m_steered, other=0)
    b_omega = tl.load(p_row + OMEGA, mask=m_steered, other=0).to(tl.float32, bitcast=True)
    b_power = tl.load(p_row + POWER, mask=m_steered, other=0).to(tl.float32, bitcast=True)

    b_generated = b_position - (b_prompt_len - 1)
    b_elapsed = tl.maximum(b_generated - b_start, 0).to(tl.float32)
    b_decay = tl.exp2(-b_power * tl.log2(1.0 + b_omega * b_elapsed))
    m_window = (b_generated >= b_start) & (b_generated < b_stop)
    b_scale = tl.where(b_generated < 0, b_prompt.to(tl.float32), tl.where(m_window, b_decay, 0.0))
    b_scale = tl.where(m_steered, b_scale, 0.0)
    tl.store(p_token_scale + o_t, b_scale, mask=m_t)
    tl.store(p_token_row + o_t, tl.where(b_scale != 0, b_request_row, -1), mask=m_t)
    if p_counts is not None:
        p_highest = p_counts + b_request_row.to(tl.int64) * COUNTS_STRIDE + HIGHEST_POSITION
        m_fresh = (b_scale != 0) & (b_position > tl.load(p_highest, mask=m_steered, other=0))
        tl.store(p_token_fresh + o_t, tl.where(m_fresh, b_position, -1), mask=m_t)


def prepare_steps_triton_(
    token_row: Tensor,
    token_scale: Tensor,
    query_start_loc: Tensor,
    request_row: Tensor,
    positions: Tensor,
    table: Tensor,
    *,
    token_fresh: Tensor | None = None,
    counts: Tensor | None = None,
) -> None:
    """Launch the kernel; arguments as of :func:`prepare_steps_torch_`."""
    n_tokens = token_row.shape[0]
    if n_tokens == 0:
        return
    _steps_kernel[(-(-n_tokens // _BLOCK_T),)](
        p_token_row=token_row,
        p_token_scale=token_scale,
        p_query_start_loc=query_start_loc,
        p_request_row=request_row,
        p_positions=positions,
        p_table=table,
        p_token_fresh=token_fresh,
        p_counts=counts,
        n_tokens=n_tokens,
        n_requests=request_row.shape[0],
        TABLE_STRIDE=table.stride(0),
        COUNTS_STRIDE=0 if counts is None else counts.stride(0),
        BLOCK_T=_BLOCK_T,
        BLOCK_N=_BLOCK_N,
    )
