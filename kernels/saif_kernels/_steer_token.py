"""Steering one token, as a program does it: shared by all kernels that steer.

Kernels take their tensors as tuples of pointers: ``x`` and ``tokens`` below, and ``bank``, a
:class:`~saif_kernels.bank.SteeringBank`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from saif_kernels._steer_dose import dose_at, longest, marked, rounded, shortened, times
from saif_kernels._triton import jit, next_power_of_2, tl, warp_size


class Stream(NamedTuple):
    """The residual stream, of which ``hidden`` is written."""

    hidden: Any  # [T, D]
    residual: Any  # [T, D] or None
    hidden_stride: int
    residual_stride: int


class Tokens(NamedTuple):
    """What each token is steered by."""

    row: Any  # [T] int32, -1 = untouched
    scale: Any  # [T] fp32
    set_slot: Any  # [N, M] int32, -1 = none
    strength: Any  # [N, M] fp32
    slot_stride: int
    strength_stride: int


def as_pointers(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    token_scale: Tensor,
    set_slot: Tensor,
    strength: Tensor,
) -> tuple[Stream, Tokens]:
    """A launch's tensors as its kernel takes them; all but the first strides are 1."""
    residual_stride = 0 if residual is None else residual.stride(0)
    return (
        Stream(hidden, residual, hidden.stride(0), residual_stride),
        Tokens(token_row, token_scale, set_slot, strength, set_slot.stride(0), strength.stride(0)),
    )


class WalkBlocks(NamedTuple):
    """What a program that steers a token holds at once."""

    block_d: int  # channels
    block_k: int  # latents
    num_warps: int


def walk_blocks(d_model: int, itemsize: int) -> WalkBlocks:
    """Blocks for rows of ``d_model`` channels: 32 bytes of a row a thread, and 16 KiB of rows."""
    block_d = next_power_of_2(d_model)
    # AMD's have 64 KiB of shared memory: half the threads, for tiles of half the size.
    most_threads = 512 if warp_size() == 32 else 256
    n_threads = max(256, min(most_threads, block_d * itemsize // 32))
    block_k = max(1, min(4, 16384 // (block_d * itemsize)))
    return WalkBlocks(block_d, block_k, n_threads // warp_size())


@jit
def stream_at(x, i_t, o_d, m):
    """``x = round_dtype(hidden + residual)`` of tokens ``i_t`` (int64) at channels ``o_d``."""
    b_hidden = tl.load(x.hidden + i_t * x.hidden_stride + o_d, mask=m, other=0.0)
    return plus_residual(b_hidden, x, i_t, o_d, m)


@jit
def plus_residual(b_hidden, x, i_t, o_d, m):
    """As ``stream_at``, where ``hidden`` is at hand."""
    b_x = b_hidden
    if x.residual is not None:
        p_residual = x.residual + i_t * x.residual_stride + o_d
        b_residual = tl.load(p_residual, mask=m, other=0.0)
        b_x = (b_hidden.to(tl.float32) + b_residual.to(tl.float32)).to(b_hidden.dtype)
    return b_x


@jit
def edited(
    b_pre,  # [BLOCK_K] or [BLOCK_T, BLOCK_K] fp32, <x, W_enc_i>
    bank,
    o_pool,  # [BLOCK_K] int64, rows of the pool
    m_k,  # [BLOCK_K]
):
    """Semantics: ``D_i = max(lo_i, p_i + q_i * a_i) * (1 if not gated_i or a_i > 0 else 0)``."""
    b_pre += tl.load(bank.b_enc + o_pool, mask=m_k, other=0.0)
    b_a = tl.where(b_pre > tl.load(bank.threshold + o_pool, mask=m_k, other=0.0), b_pre, 0.0)
    b_p = tl.load(bank.p + o_pool, mask=m_k, other=0.0)
    b_q = tl.load(bank.q + o_pool, mask=m_k, other=0.0)
    b_lo = tl.load(bank.lo + o_pool, mask=m_k, other=0.0)
    m_open = tl.load(bank.gated + o_pool, mask=m_k, other=0) == 0
    b_edit = tl.maximum(b_lo, b_p + b_q * b_a, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(m_k & (m_open | (b_a > 0)), b_edit, 0.0)


@jit
def pre_activations(
    b_x,  # [BLOCK_D] fp32
    bank,
    o_pool,  # [BLOCK_K] int64, rows of the pool
    m_k,  # [BLOCK_K]
    o_d,  # [BLOCK_D]
    m_d,  # [BLOCK_D]
    D: tl.constexpr,
):
    """``<x, W_enc_i>`` over the channels ``o_d``: [BLOCK_K] fp32."""
    p_W_enc = bank.W_enc + o_pool[:, None] * D + o_d[None, :]
    b_W_enc = tl.load(p_W_enc, mask=m_k[:, None] & m_d[None, :], other=0.0)
    return tl.sum(b_x[None, :] * b_W_enc.to(tl.float32), axis=1)


@jit
def token_partials(
    x,
    bank,
    tokens,
    p_partial,  # [T, M, MAX_LATENTS, N_PARTS] fp32, written
    p_x2,  # [T, N_PARTS] fp32, written
    i_t,  # int64
    row,  # int64, the token's
    i_part,
    o_d,  # [BLOCK_D], channels of the part
    m_d,  # [BLOCK_D]
    D: tl.constexpr,
    M: tl.constexpr,
    N_PARTS: tl.constexpr,
    MAX_LATENTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write what one part of d_model adds to the pre-activations of a token's latents, and to its
    sum of x**2.
    """
    b_x = stream_at(x, i_t, o_d, m_d).to(tl.float32)
    tl.store(p_x2 + i_t * N_PARTS + i_part, tl.sum(b_x * b_x, axis=0))
    for i_pair in range(M):
        slot = tl.load(tokens.set_slot + row * tokens.slot_stride + i_pair).to(tl.int64)
        if slot >= 0:
            first = tl.load(bank.offset + slot).to(tl.int64)
            n_latents = tl.load(bank.n_latents + slot)
            for i_k in tl.range(0, n_latents, BLOCK_K, num_stages=3):
                o_k = i_k + tl.arange(0, BLOCK_K)
                m_k = o_k < n_latents
                b_pre = pre_activations(b_x, bank, first + o_k, m_k, o_d, m_d, D)
                o_partial = ((i_t * M + i_pair) * MAX_LATENTS + o_k) * N_PARTS + i_part
                tl.store(p_partial + o_partial, b_pre, mask=m_k)


@jit
def token_change(
    b_x,  # [BLOCK_D] fp32, at the channels o_d; not read where there is p_partial
    bank,
    tokens,
    p_partial,  # as token_partials wrote it; None where o_d is all channels
    i_t,  # int64
    row,  # int64, the token's
    scale,  # fp32, the token's
    o_d,  # [BLOCK_D], channels to return
    m_d,  # [BLOCK_D]
    D: tl.constexpr,
    M: tl.constexpr,
    N_PARTS: tl.constexpr,
    MAX_LATENTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr = 3,
):
    """``scale * sum_s w_s * (vector_s + sum_i D_i * W_dec_i)`` at the channels ``o_d`` in fp32, and
    the sum of its terms' lengths over all channels, which it cannot exceed.
    """
    b_change = tl.zeros(o_d.shape, dtype=tl.float32)
    reach = 0.0
    for i_pair in range(M):
        slot = tl.load(tokens.set_slot + row * tokens.slot_stride + i_pair).to(tl.int64)
        weight = scale * tl.load(tokens.strength + row * tokens.strength_stride + i_pair)
        if (slot >= 0) & (weight != 0):
            b_vector = tl.load(bank.vector + slot * D + o_d, mask=m_d, other=0.0)
            b_change += weight * b_vector.to(tl.float32)
            reach += tl.abs(weight) * tl.load(bank.vector_norm + slot)
            first = tl.load(bank.offset + slot).to(tl.int64)
            n_latents = tl.load(bank.n_latents + slot)
            for i_k in tl.range(0, n_latents, BLOCK_K, num_stages=NUM_STAGES):
                o_k = i_k + tl.arange(0, BLOCK_K)
                m_k = o_k < n_latents
                if p_partial is None:
                    b_pre = pre_activations(b_x, bank, first + o_k, m_k, o_d, m_d, D)
                else:
                    o_partial = ((i_t * M + i_pair) * MAX_LATENTS + o_k) * N_PARTS
                    p_parts = p_partial + o_partial[:, None] + tl.arange(0, N_PARTS)[None, :]
                    b_pre = tl.sum(tl.load(p_parts, mask=m_k[:, None], other=0.0), axis=1)
                b_weight = weight * edited(b_pre, bank, first + o_k, m_k)
                p_W_dec = bank.W_dec + (first + o_k)[:, None] * D + o_d[None, :]
                b_W_dec = tl.load(p_W_dec, mask=m_k[:, None] & m_d[None, :], other=0.0)
                b_change += tl.sum(b_weight[:, None] * b_W_dec.to(tl.float32), axis=0)
                b_norm = tl.load(bank.W_dec_norm + first + o_k, mask=m_k, other=0.0)
                reach += tl.sum(tl.abs(b_weight) * b_norm, axis=0)
    return b_change, reach


@jit
def steer_token(
    x,
    bank,
    tokens,
    p_partial,  # as token_partials wrote it; None where o_d is all channels
    p_x2,  # likewise
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written; or None
    max_dose,  # or None
    i_t,  # int64
    i_part,  # of the channels
    o_d,  # [BLOCK_D], channels to write
    m_d,  # [BLOCK_D]
    D: tl.constexpr,
    M: tl.constexpr,
    N_PARTS: tl.constexpr,
    PART_D: tl.constexpr,
    MAX_LATENTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Steer token ``i_t`` in place; of row -1 it is not read, of scale 0 not written."""
    row = tl.load(tokens.row + i_t).to(tl.int64)
    if row >= 0:
        # Loads that wait only for the row: no branch between them.
        scale = tl.load(tokens.scale + i_t)
        p_hidden = x.hidden + i_t * x.hidden_stride + o_d
        b_hidden = tl.load(p_hidden, mask=m_d, other=0.0)
        b_x = None
        if p_partial is None:
            b_x = plus_residual(b_hidden, x, i_t, o_d, m_d).to(tl.float32)
            part_x2 = tl.sum(b_x * b_x, axis=0)
        else:
            part_x2 = tl.load(p_x2 + i_t * N_PARTS + i_part)
        b_change, reach = token_change(
            b_x, bank, tokens, p_partial, i_t, row, scale, o_d, m_d,
            D, M, N_PARTS, MAX_LATENTS, BLOCK_K,
        )  # fmt: skip
        part_change2 = tl.sum(b_change * b_change, axis=0)
        if p_partial is None:
            factor = shortened(part_change2, part_x2, max_dose, LARGEST)
        else:
            x2 = tl.sum(tl.load(p_x2 + i_t * N_PARTS + tl.arange(0, N_PARTS)), axis=0)
            # Mostly its reach says that the change is short enough. (NaN is not <=, nor <.)
            short = (reach <= longest(x2, max_dose, LARGEST)) & (x2 < float("inf"))
            factor = tl.where(short, 1.0, -1.0)
            if factor < 0:
                change2 = 0.0
                for i in range(N_PARTS):
                    o_i = o_d + (i - i_part) * PART_D
                    m_i = (o_i < (i + 1) * PART_D) & (o_i < D)
                    b_part, _ = token_change(
                        b_x, bank, tokens, p_partial, i_t, row, scale, o_i, m_i,
                        D, M, N_PARTS, MAX_LATENTS, BLOCK_K, NUM_STAGES=1,
                    )  # fmt: skip
                    change2 += tl.sum(b_part * b_part, axis=0)
                factor = shortened(change2, x2, max_dose, LARGEST)
        if scale != 0:
            if p_dose is not None:
                part_change2, part_x2 = marked(part_change2, part_x2, factor)
                tl.store(dose_at(p_dose, i_t, i_part), part_change2)
                tl.store(dose_at(p_dose, i_t, i_part) + 1, part_x2)
            if factor >= 0:
                b_change = times(b_change, factor)
                b_steered = rounded(b_hidden.to(tl.float32) + b_change, b_hidden.dtype)
                tl.store(p_hidden, b_steered, mask=m_d)
