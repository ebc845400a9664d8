"""Steering a tile of tokens that share their sets: tl.dot reads each row of the bank once."""

from __future__ import annotations

from typing import NamedTuple

from saif_kernels._steer_dose import dose_at, longest, rounded
from saif_kernels._steer_token import edited, stream_at
from saif_kernels._triton import jit, tl


class TileSizes(NamedTuple):
    """Constants that a kernel of tiles is compiled for, besides ``Sizes``; ``TILE`` in kernels."""

    BLOCK_T: int  # tokens of a tile
    BLOCK_M: int  # pairs of a request
    BLOCK_D: int  # channels of a step


@jit
def shared_latents(
    bank,
    tokens,
    b_request_row,  # [BLOCK_T] int64, of each token
    m_t,  # [BLOCK_T], steered tokens
    lead_row,  # int64, request row of one of them
    SIZES: tl.constexpr,
):
    """Return how many live latents each steered token of a tile has; -1: their sets differ."""
    n_latents = 0
    n_others = 0
    for i_pair in range(SIZES.M):
        slot = tl.load(tokens.set_slot + lead_row * tokens.slot_stride + i_pair)
        p_slot = tokens.set_slot + b_request_row * tokens.slot_stride + i_pair
        b_slot = tl.load(p_slot, mask=m_t, other=-1)
        n_others += tl.sum((m_t & (b_slot != slot)).to(tl.int32))
        n_latents += tl.load(bank.n_latents + slot, mask=slot >= 0, other=0)
    return tl.where(n_others == 0, n_latents, -1)


@jit
def as_operands(
    b_weight,  # [BLOCK_T, BLOCK_K] fp32
    DTYPE: tl.constexpr,
):
    """Split ``weight = unit * (high + low)``: unit [BLOCK_T, 1] fp32, high and low of DTYPE.

    Two operands of DTYPE keep 16 bits of the weight (22 in fp16), where one would keep 8 (11). The
    unit, a token's largest weight, keeps both in fp16's range.
    """
    b_unit = tl.max(tl.abs(b_weight), axis=1)[:, None]
    b_unit = tl.where(b_unit > 0, b_unit, 1.0)
    b_weight = b_weight / b_unit
    b_high = b_weight.to(DTYPE)
    return b_unit, b_high, (b_weight - b_high.to(tl.float32)).to(DTYPE)


@jit
def weighted_sum(
    operands,  # of [BLOCK_T, BLOCK_K] weights, from as_operands
    b_vectors,  # [BLOCK_K, BLOCK_D] of DTYPE
):
    """Return ``weight @ vectors`` [BLOCK_T, BLOCK_D] fp32."""
    b_unit, b_high, b_low = operands
    b_sum = tl.dot(b_high, b_vectors, input_precision="ieee")
    if b_vectors.dtype != tl.float32:  # in fp32, high is exact
        b_sum = tl.dot(b_low, b_vectors, b_sum, input_precision="ieee")
    return b_unit * b_sum


@jit
def squares(
    b_x,  # [BLOCK_T, BLOCK_D]
    WIDTH: tl.constexpr,
):
    """Return sums of squares of WIDTH channels each: [BLOCK_T, BLOCK_D // WIDTH] fp32."""
    b_x = b_x.to(tl.float32)
    b_x = tl.reshape(b_x * b_x, [b_x.shape[0], b_x.shape[1] // WIDTH, WIDTH])
    return tl.sum(b_x, axis=2)


@jit
def steer_tile(
    x,
    bank,
    tokens,
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written in part 0; or None
    max_dose,  # or None
    o_t,  # [BLOCK_T] int64
    b_request_row,  # [BLOCK_T] int64, of each token
    b_scale,  # [BLOCK_T] fp32, of each token
    m_t,  # [BLOCK_T], steered tokens
    lead_row,  # int64, request row of one of them
    SIZES: tl.constexpr,
    TILE: tl.constexpr,  # TileSizes
    BLOCK_K: tl.constexpr,
):
    """Steer a tile whose steered tokens share their sets, of at most BLOCK_K live latents together.

    Returns a bit per token: 1 where its change may be too long, so that nothing was written of it.
    The change cannot exceed the lengths of its terms. Their sum mostly shows that it is short
    enough, before a channel of it is known.
    """
    D: tl.constexpr = SIZES.D
    BLOCK_T: tl.constexpr = TILE.BLOCK_T
    BLOCK_D: tl.constexpr = TILE.BLOCK_D
    DTYPE: tl.constexpr = x.hidden.dtype.element_ty
    WIDTH: tl.constexpr = 128 // DTYPE.primitive_bitwidth  # channels that a thread loads at once
    o_m = tl.arange(0, TILE.BLOCK_M)
    p_slot = tokens.set_slot + lead_row * tokens.slot_stride + o_m
    o_slot = tl.load(p_slot, mask=o_m < SIZES.M, other=-1).to(tl.int64)
    m_m = o_slot >= 0

    # The latents of all sets in one list: the pair and the pool index of each.
    b_n_latents = tl.load(bank.n_latents + o_slot, mask=m_m, other=0)
    b_offset = tl.load(bank.offset + o_slot, mask=m_m, other=0)
    b_end = tl.cumsum(b_n_latents, axis=0)
    b_begin = b_end - b_n_latents
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < tl.sum(b_n_latents)
    m_mk = (b_begin[:, None] <= o_k[None, :]) & (o_k[None, :] < b_end[:, None])
    o_pair = tl.sum(tl.where(m_mk, o_m[:, None], 0), axis=0)
    o_pool = o_k + tl.sum(tl.where(m_mk, (b_offset - b_begin)[:, None], 0), axis=0).to(tl.int64)

    # A step's rows are of hidden, of the residual (or the vectors), and of W_enc (or W_dec).
    STEP_BITS: tl.constexpr = (2 * BLOCK_T + BLOCK_K) * BLOCK_D * DTYPE.primitive_bitwidth
    NUM_STAGES: tl.constexpr = 1 + 48 * 1024 * 8 // STEP_BITS  # 48 KiB on their way
    b_pre = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.float32)
    b_squares = tl.zeros([BLOCK_T, BLOCK_D // WIDTH], dtype=tl.float32)  # summed over the steps
    for i_d in tl.range(0, D, BLOCK_D, num_stages=NUM_STAGES):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_x = stream_at(x, o_t[:, None], o_d[None, :], m_t[:, None] & m_d[None, :])
        p_W_enc = bank.W_enc + o_pool[None, :] * D + o_d[:, None]
        b_W_enc = tl.load(p_W_enc, mask=m_k[None, :] & m_d[:, None], other=0.0)
        b_pre = tl.dot(b_x, b_W_enc, b_pre, input_precision="ieee")
        b_squares += squares(b_x, WIDTH)
    b_x2 = tl.sum(b_squares, axis=1)

    p_strength = tokens.strength + b_request_row[:, None] * tokens.strength_stride
    m_tk, m_tm = m_t[:, None] & m_k[None, :], m_t[:, None] & m_m[None, :]
    b_weight = b_scale[:, None] * tl.load(p_strength + o_pair[None, :], mask=m_tk, other=0.0)
    b_strength = b_scale[:, None] * tl.load(p_strength + o_m[None, :], mask=m_tm, other=0.0)
    b_weight *= edited(b_pre, bank, o_pool, m_k)

    b_norm = tl.load(bank.W_dec_norm + o_pool, mask=m_k, other=0.0)
    b_reach = tl.sum(tl.abs(b_weight) * b_norm[None, :], axis=1)
    b_norm = tl.load(bank.vector_norm + o_slot, mask=m_m, other=0.0)
    b_reach += tl.sum(tl.abs(b_strength) * b_norm[None, :], axis=1)
    # NaN is not <=, nor <.
    m_short = (b_reach <= longest(b_x2, max_dose, SIZES.LARGEST)) & (b_x2 < float("inf"))
    long = tl.sum(tl.where(m_t & (m_short == 0), 1 << tl.arange(0, BLOCK_T), 0))
    m_t = m_t & m_short
    if tl.max(m_t.to(tl.int32)) > 0:
        if p_dose is not None:  # now: held until the end, it would take registers
            tl.store(dose_at(p_dose, o_t, 0) + 1, b_x2, mask=m_t)
        latents, vectors = as_operands(b_weight, DTYPE), as_operands(b_strength, DTYPE)
        b_squares = tl.zeros([BLOCK_T, BLOCK_D // WIDTH], dtype=tl.float32)
        for i_d in tl.range(0, D, BLOCK_D, num_stages=NUM_STAGES):
            o_d = i_d + tl.arange(0, BLOCK_D)
            m_d = o_d < D
            p_W_dec = bank.W_dec + o_pool[:, None] * D + o_d[None, :]
            b_W_dec = tl.load(p_W_dec, mask=m_k[:, None] & m_d[None, :], other=0.0)
            p_vector = bank.vector + o_slot[:, None] * D + o_d[None, :]
            b_vector = tl.load(p_vector, mask=m_m[:, None] & m_d[None, :], other=0.0)
            b_change = weighted_sum(latents, b_W_dec) + weighted_sum(vectors, b_vector)
            if p_dose is not None:
                b_squares += squares(b_change, WIDTH)
            m_td = m_t[:, None] & m_d[None, :]
            p_hidden = x.hidden + o_t[:, None] * x.hidden_stride + o_d[None, :]
            b_hidden = tl.load(p_hidden, mask=m_td, other=0.0)
            b_steered = rounded(b_hidden.to(tl.float32) + b_change, DTYPE)
            tl.store(p_hidden, b_steered, mask=m_td)
        if p_dose is not None:
            tl.store(dose_at(p_dose, o_t, 0), tl.sum(b_squares, axis=1), mask=m_t)
    return long
