"""Steering one token in one program: shared by all kernels that steer.

Kernels take their tensors as tuples of pointers: ``x`` and ``tokens`` below, and ``bank``, a
:class:`~saif_kernels.bank.SteeringBank`. Their compile-time sizes are one tuple, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from saif_kernels._steer_dose import dose_at, longest, marked, rounded, shortened, times
from saif_kernels._triton import jit, next_power_of_2, tl, warp_size


class StreamPointers(NamedTuple):
    """The residual stream, of which ``hidden`` is written."""

    hidden: Any  # [T, D]
    residual: Any  # [T, D] or None
    hidden_stride: int
    residual_stride: int


class TokenPointers(NamedTuple):
    """The request of each token, its scale, and the sets of each request."""

    request_row: Any  # [T] int32, -1 = untouched
    scale: Any  # [T] fp32
    set_slot: Any  # [N, M] int32, -1 = none
    strength: Any  # [N, M] fp32
    slot_stride: int
    strength_stride: int


class PartialPointers(NamedTuple):
    """The share of each part of a token's channels in the sums over all of them."""

    pre: Any  # [T, M, MAX_LATENTS, N_PARTS] fp32, of the pre-activations
    x2: Any  # [T, N_PARTS] fp32, of the sum of x**2


class Sizes(NamedTuple):
    """Constants that a steering kernel is compiled for; ``SIZES`` in the kernels."""

    D: int  # channels of a token
    M: int  # pairs of a request
    MAX_LATENTS: int  # of a set
    LARGEST: float  # norm that no stream is made to exceed
    N_PARTS: int  # that a token's channels are cut into, each steered by a program of its own
    PART_D: int  # channels of a part
    BLOCK_D: int  # channels that a program holds, at least PART_D
    BLOCK_K: int  # latents that a program holds


def as_pointers(
    hidden: Tensor,
    residual: Tensor | None,
    token_row: Tensor,
    token_scale: Tensor,
    set_slot: Tensor,
    strength: Tensor,
) -> tuple[StreamPointers, TokenPointers]:
    """Group a launch's tensors as a kernel takes them; all strides but the first are 1."""
    residual_stride = 0 if residual is None else residual.stride(0)
    strides = set_slot.stride(0), strength.stride(0)
    return (
        StreamPointers(hidden, residual, hidden.stride(0), residual_stride),
        TokenPointers(token_row, token_scale, set_slot, strength, *strides),
    )


class WalkBlocks(NamedTuple):
    """The blocks that a program which steers one token holds at once."""

    block_d: int  # channels
    block_k: int  # latents
    num_warps: int


def walk_blocks(d_model: int, itemsize: int) -> WalkBlocks:
    """Choose blocks for rows of ``d_model`` channels: 32 bytes per thread, 16 KiB of rows."""
    block_d = next_power_of_2(d_model)
    # AMD's GPUs have 64 KiB of shared memory: half the threads, for tiles of half the size.
    most_threads = 512 if warp_size() == 32 else 256
    n_threads = max(256, min(most_threads, block_d * itemsize // 32))
    block_k = max(1, min(4, 16384 // (block_d * itemsize)))
    return WalkBlocks(block_d, block_k, n_threads // warp_size())


@jit
def part_channels(i_part, SIZES: tl.constexpr):
    """Return the channels of a part [BLOCK_D] and their mask."""
    o = tl.arange(0, SIZES.BLOCK_D)
    o_d = i_part * SIZES.PART_D + o
    return o_d, (o < SIZES.PART_D) & (o_d < SIZES.D)


@jit
def stream_at(x, i_t, o_d, m):
    """Load ``x = round_dtype(hidden + residual)`` of tokens ``i_t`` (int64) at channels ``o_d``."""
    b_hidden = tl.load(x.hidden + i_t * x.hidden_stride + o_d, mask=m, other=0.0)
    return plus_residual(b_hidden, x, i_t, o_d, m)


@jit
def plus_residual(b_hidden, x, i_t, o_d, m):
    """Return what ``stream_at`` loads, where ``hidden`` is loaded already."""
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
    o_pool,  # [BLOCK_K] int64, indices into the pool
    m_k,  # [BLOCK_K]
):
    """Return ``D_i = max(lo_i, p_i + q_i * a_i) * (1 if not gated_i or a_i > 0 else 0)``."""
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
    o_pool,  # [BLOCK_K] int64, indices into the pool
    m_k,  # [BLOCK_K]
    o_d,  # [BLOCK_D]
    m_d,  # [BLOCK_D]
    SIZES: tl.constexpr,
):
    """Return ``<x, W_enc_i>`` over the channels ``o_d``: [BLOCK_K] fp32."""
    p_W_enc = bank.W_enc + o_pool[:, None] * SIZES.D + o_d[None, :]
    b_W_enc = tl.load(p_W_enc, mask=m_k[:, None] & m_d[None, :], other=0.0)
    return tl.sum(b_x[None, :] * b_W_enc.to(tl.float32), axis=1)


@jit
def token_change(
    b_x,  # [BLOCK_D] fp32, at the channels o_d; not read where there are partials
    bank,
    tokens,
    partials,  # None where o_d is all channels
    i_t,  # int64
    request_row,  # int64, the token's
    scale,  # fp32, the token's
    o_d,  # [BLOCK_D], channels to return
    m_d,  # [BLOCK_D]
    SIZES: tl.constexpr,
    NUM_STAGES: tl.constexpr = 3,
):
    """Return ``scale * sum_s w_s * (vector_s + sum_i D_i * W_dec_i)`` at the channels ``o_d`` in
    fp32, and the sum of its terms' lengths over all channels, which it cannot exceed.
    """
    b_change = tl.zeros(o_d.shape, dtype=tl.float32)
    reach = 0.0
    for i_pair in range(SIZES.M):
        slot = tl.load(tokens.set_slot + request_row * tokens.slot_stride + i_pair).to(tl.int64)
        strength = tl.load(tokens.strength + request_row * tokens.strength_stride + i_pair)
        weight = scale * strength
        if (slot >= 0) & (weight != 0):
            b_vector = tl.load(bank.vector + slot * SIZES.D + o_d, mask=m_d, other=0.0)
            b_change += weight * b_vector.to(tl.float32)
            reach += tl.abs(weight) * tl.load(bank.vector_norm + slot)
            first = tl.load(bank.offset + slot).to(tl.int64)
            n_latents = tl.load(bank.n_latents + slot)
            for i_k in tl.range(0, n_latents, SIZES.BLOCK_K, num_stages=NUM_STAGES):
                o_k = i_k + tl.arange(0, SIZES.BLOCK_K)
                m_k = o_k < n_latents
                if partials is None:
                    b_pre = pre_activations(b_x, bank, first + o_k, m_k, o_d, m_d, SIZES)
                else:
                    o_partial = (i_t * SIZES.M + i_pair) * SIZES.MAX_LATENTS + o_k
                    p_partial = partials.pre + (o_partial * SIZES.N_PARTS)[:, None]
                    p_partial += tl.arange(0, SIZES.N_PARTS)[None, :]
                    b_pre = tl.sum(tl.load(p_partial, mask=m_k[:, None], other=0.0), axis=1)
                b_weight = weight * edited(b_pre, bank, first + o_k, m_k)
                p_W_dec = bank.W_dec + (first + o_k)[:, None] * SIZES.D + o_d[None, :]
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
    partials,  # None where there is one part
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written; or None
    max_dose,  # or None
    i_t,  # int64
    i_part,  # of the channels
    SIZES: tl.constexpr,
):
    """Steer a part of token ``i_t`` in place. A token of row -1 is not read, one of scale 0 not
    written.
    """
    request_row = tl.load(tokens.request_row + i_t).to(tl.int64)
    o_d, m_d = part_channels(i_part, SIZES)
    if request_row >= 0:
        # These loads wait for the row alone: no branch lies between them.
        scale = tl.load(tokens.scale + i_t)
        p_hidden = x.hidden + i_t * x.hidden_stride + o_d
        b_hidden = tl.load(p_hidden, mask=m_d, other=0.0)
        b_x = None
        if partials is None:
            b_x = plus_residual(b_hidden, x, i_t, o_d, m_d).to(tl.float32)
            part_x2 = tl.sum(b_x * b_x, axis=0)
        else:
            part_x2 = tl.load(partials.x2 + i_t * SIZES.N_PARTS + i_part)
        b_change, reach = token_change(
            b_x, bank, tokens, partials, i_t, request_row, scale, o_d, m_d, SIZES
        )
        part_change2 = tl.sum(b_change * b_change, axis=0)
        if partials is None:
            factor = shortened(part_change2, part_x2, max_dose, SIZES.LARGEST)
        else:
            p_x2 = partials.x2 + i_t * SIZES.N_PARTS + tl.arange(0, SIZES.N_PARTS)
            x2 = tl.sum(tl.load(p_x2), axis=0)
            # The reach alone mostly shows that the change is short enough. (NaN is not <=, nor <.)
            short = (reach <= longest(x2, max_dose, SIZES.LARGEST)) & (x2 < float("inf"))
            factor = tl.where(short, 1.0, -1.0)
            if factor < 0:
                change2 = 0.0
                for i in range(SIZES.N_PARTS):
                    o_i = o_d + (i - i_part) * SIZES.PART_D
                    m_i = (o_i < (i + 1) * SIZES.PART_D) & (o_i < SIZES.D)
                    b_part, _ = token_change(
                        b_x, bank, tokens, partials, i_t, request_row, scale, o_i, m_i, SIZES,
                        NUM_STAGES=1,
                    )  # fmt: skip
                    change2 += tl.sum(b_part * b_part, axis=0)
                factor = shortened(change2, x2, max_dose, SIZES.LARGEST)
        if scale != 0:
            if p_dose is not None:
                part_change2, part_x2 = marked(part_change2, part_x2, factor)
                tl.store(dose_at(p_dose, i_t, i_part), part_change2)
                tl.store(dose_at(p_dose, i_t, i_part) + 1, part_x2)
            if factor >= 0:
                b_change = times(b_change, factor)
                b_steered = rounded(b_hidden.to(tl.float32) + b_change, b_hidden.dtype)
                tl.store(p_hidden, b_steered, mask=m_d)
