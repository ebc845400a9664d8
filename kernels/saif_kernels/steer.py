"""The steering op: encode the chosen latents, edit, add their decoder rows, in place."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from saif_kernels._steer_door import check_batch, check_dose, from_schema
from saif_kernels._steer_dose import DOSE_PARTS, largest_norm, rounded_torch, shortened_torch
from saif_kernels._steer_tile import shared_latents, steer_tile
from saif_kernels._steer_token import (
    WalkBlocks,
    as_pointers,
    steer_token,
    token_partials,
    walk_blocks,
)
from saif_kernels._triton import jit, next_power_of_2, tl, warp_size
from saif_kernels.bank import MAX_LATENTS, SteeringBank
from saif_kernels.rows import RequestRows

FEW_TOKENS = 64  # up to here each token has programs of its own, beyond there are tiles
TILE_TOKENS = 16  # the least that tl.dot takes
_TILE = 32  # of the reference: pairs of a token and a set that share one read of the set's rows
_TILES = 8  # of the reference: tiles at a time


def steer_(
    hidden: Tensor,
    residual: Tensor | None,
    bank: SteeringBank,
    rows: RequestRows,
    token_row: Tensor,
    token_scale: Tensor,
    dose: Tensor | None = None,
    max_dose: float | None = None,
) -> None:
    """Steer the tokens of a batch, each with the sets of its request.

    Semantics: with ``x = round_dtype(hidden + residual)``, then in fp32, for every pair (set s,
    strength w_s) of the token's row and every live latent i of s::

        pre_i = <x, W_enc_i> + b_enc_i
        a_i   = pre_i if pre_i > threshold_i else 0
        D_i   = max(lo_i, p_i + q_i * a_i) * (1 if not gated_i or a_i > 0 else 0)
        hidden' = cast(hidden + scale_t * sum_s w_s * (vector_s + sum_i D_i * W_dec_i))

    All D_i come from the same x, so the order of latents and sets does not matter. Tokens of row
    -1 or scale 0 keep their bits.

    A change is added as far as it is safe. It is shortened, with fp32 rounding, to the length
    ``min(max_dose * |x|, largest - |x|)``, at least 0, where it is longer: ``largest`` is 2**15 in
    fp16, where more would leave later layers no room, and 2**40 elsewhere. Where the squares of
    change or x do not add up to a finite number, the token keeps its bits.

    Args:
        hidden: [T, d_model] fp32, bf16 or fp16 (fp64 is computed in fp64). Written in place.
        residual: [T, d_model] same dtype, or None where ``hidden`` is already the residual stream.
            Read only.
        bank: tables of this layer.
        rows: sets and strengths of each request.
        token_row: [T] int32, row of each token, -1 = untouched.
        token_scale: [T] fp32, scale of each token.
        dose: [>= T, DOSE_PARTS, 2] fp32, or None. For every steered token (of a row, and a scale
            other than 0) and part p of its channels, ``dose[t, p]`` becomes (sum of change**2, sum
            of x**2), change being what is added, in fp32 before the cast; with the marks of
            ``_steer_dose.py``. A launch has one part or DOSE_PARTS; nothing else is written.
        max_dose: of a token, the most |change| / |x|; None = no cap.

    Raises:
        ValueError: a shape, stride or dtype does not fit, or max_dose is not above 0; nothing was
            written.
    """
    check_batch(hidden, residual, bank, token_row, token_scale)
    if dose is not None:
        check_dose(dose, hidden.shape[0])
    if max_dose is not None and not max_dose > 0:
        raise ValueError(f"max_dose: expected a number above 0, got {max_dose}")
    torch.ops.saif.steer_(
        hidden,
        residual,
        *bank,
        rows.set_slot,
        rows.strength,
        token_row,
        token_scale,
        dose=dose,
        max_dose=max_dose,
    )


def steer_torch_(
    hidden: Tensor,
    residual: Tensor | None,
    *tables: Tensor,
    dose: Tensor | None = None,
    max_dose: float | None = None,
) -> None:
    """The reference, and the implementation on CPUs; ``tables``: see :func:`from_schema`.

    Rows are read by ``index_select`` and ``embedding``, several times as fast as by an index.
    """
    bank, set_slot, strength, token_row, token_scale = from_schema(tables)
    n_tokens = hidden.shape[0]
    token_row, token_scale = token_row[:n_tokens], token_scale[:n_tokens]
    token = ((token_row >= 0) & (token_scale != 0)).nonzero().squeeze(1)
    if token.numel() == 0:
        return
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    row = token_row[token].long()
    slot = set_slot.index_select(0, row)  # [t, M]
    weight = torch.where(slot >= 0, strength.index_select(0, row), 0.0)  # [t, M]
    weight = weight * token_scale[token, None]

    chosen = hidden.index_select(0, token)
    x = chosen if residual is None else chosen + residual.index_select(0, token)
    x = x.to(accumulate)
    # Pairs of a token and a set, sorted by set: tiles of them then read a set's rows once.
    pair_token, pair = weight.nonzero(as_tuple=True)
    pair_slot, order = slot[pair_token, pair].long().sort(stable=True)
    pair_token, pair_weight = pair_token[order], weight[pair_token, pair][order].to(accumulate)
    change = embedding(pair_slot, bank.vector).to(accumulate)
    if pair_slot.numel() and bank.n_latents[pair_slot].any():
        tile_slot, tile, lane = _tiles(pair_slot)
        xs = x.new_zeros(len(tile_slot), int(lane.max()) + 1, x.shape[1])
        xs[tile, lane] = x.index_select(0, pair_token)
        # Some tiles at a time: their rows then stay in the cache.
        parts = zip(tile_slot.split(_TILES), xs.split(_TILES), strict=True)
        change += torch.cat([_live_change(bank, slots, part) for slots, part in parts])[tile, lane]
    delta = torch.zeros_like(x).index_add_(0, pair_token, pair_weight[:, None] * change)
    n_parts = steer_blocks(n_tokens, hidden.shape[1], hidden.element_size()).n_parts
    delta, sums = shortened_torch(delta, x, n_parts, largest_norm(hidden.dtype), max_dose)
    if dose is not None:
        dose[token, :n_parts] = sums
    hidden.index_copy_(0, token, rounded_torch(chosen.to(accumulate) + delta, hidden.dtype))


def _live_change(bank: SteeringBank, slot: Tensor, x: Tensor) -> Tensor:
    """What live latents add to x [tiles, n, d_model], a set (``slot`` [tiles]) a tile."""
    i = torch.arange(int(bank.n_latents[slot].max()), device=x.device)
    live = (i < bank.n_latents[slot, None])[:, None]  # [tiles, 1, n_live]
    rows = torch.where(live, bank.offset[slot, None, None] + i, 0)
    W_enc, W_dec = (embedding(rows[:, 0], W).to(x.dtype) for W in (bank.W_enc, bank.W_dec))
    pre = x @ W_enc.mT + bank.b_enc[rows]
    a = torch.where(pre > bank.threshold[rows], pre, 0.0)
    edit = torch.maximum(bank.lo[rows].to(x.dtype), bank.p[rows] + bank.q[rows] * a)
    edit = torch.where(live & (~bank.gated[rows] | (a > 0)), edit, 0.0)
    return edit @ W_dec


def _tiles(slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut sorted slots [n] into runs of equal ones, at most ``_TILE`` long.

    Returns the slot of each run [tiles], and for each of the n its run and its place there.
    """
    slots, sizes = slot.unique_consecutive(return_counts=True)
    n_tiles = (sizes + _TILE - 1) // _TILE
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    first_tile = (n_tiles.cumsum(0) - n_tiles).repeat_interleave(sizes)
    rank = torch.arange(len(slot), device=slot.device) - first
    return slots.repeat_interleave(n_tiles), first_tile + rank // _TILE, rank % _TILE


class SteerBlocks(NamedTuple):
    """How a launch is cut up."""

    n_parts: int  # of d_model, each a program of a token's; 1 where there are tiles
    part_d: int  # channels of a part
    walk: WalkBlocks  # of a program that steers one token's part
    tile_t: int  # tokens of a tile; 1: there are no tiles
    tile_d: int  # channels of a tile's step
    n_walkers: int  # programs that share the tokens of a tile whose sets differ


def steer_blocks(n_tokens: int, d_model: int, itemsize: int) -> SteerBlocks:
    """Blocks for ``n_tokens`` padded tokens, by shapes alone: a CUDA graph may keep them."""
    few = n_tokens <= FEW_TOKENS
    # A program streams two rows a latent: of more than 8 KiB each, that takes it too long.
    n_parts = DOSE_PARTS if few and d_model * itemsize > 8192 else 1
    part_d = -(-d_model // n_parts)
    walk = walk_blocks(part_d, itemsize)
    return SteerBlocks(
        n_parts=n_parts,
        part_d=part_d,
        walk=walk,
        tile_t=1 if few else TILE_TOKENS,
        tile_d=walk.num_warps * warp_size() // itemsize,  # 16 bytes a thread, the widest load
        n_walkers=TILE_TOKENS if n_tokens <= 2048 else 4,
    )


@jit
def _partial_kernel(
    x,  # Stream
    bank,  # SteeringBank
    tokens,  # Tokens
    p_partial,  # [T, M, MAX_LATENTS, N_PARTS] fp32, written
    p_x2,  # [T, N_PARTS] fp32, written
    D: tl.constexpr,
    M: tl.constexpr,
    N_PARTS: tl.constexpr,
    PART_D: tl.constexpr,
    MAX_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (token, part): the part's share of the token's pre-activations and sum of x**2."""
    i_t = tl.program_id(0).to(tl.int64)
    i_part = tl.program_id(1)
    o = tl.arange(0, BLOCK_D)
    o_d = i_part * PART_D + o
    m_d = (o < PART_D) & (o_d < D)
    row = tl.load(tokens.row + i_t).to(tl.int64)
    if row >= 0:
        token_partials(
            x, bank, tokens, p_partial, p_x2, i_t, row, i_part, o_d, m_d,
            D, M, N_PARTS, MAX_LATENTS, BLOCK_K,
        )  # fmt: skip


@jit
def _token_kernel(
    x,  # Stream
    bank,  # SteeringBank
    tokens,  # Tokens
    p_partial,  # [T, M, MAX_LATENTS, N_PARTS] fp32; None with one part
    p_x2,  # [T, N_PARTS] fp32; None with one part
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written; or None
    max_dose,  # or None
    D: tl.constexpr,
    M: tl.constexpr,
    N_PARTS: tl.constexpr,
    PART_D: tl.constexpr,
    MAX_LATENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Program (token, part): steer the part's channels of the token."""
    i_t = tl.program_id(0).to(tl.int64)
    i_part = tl.program_id(1)
    o = tl.arange(0, BLOCK_D)
    o_d = i_part * PART_D + o
    m_d = (o < PART_D) & (o_d < D)
    steer_token(
        x, bank, tokens, p_partial, p_x2, p_dose, max_dose, i_t, i_part, o_d, m_d,
        D, M, N_PARTS, PART_D, MAX_LATENTS, BLOCK_K, LARGEST,
    )  # fmt: skip


@jit(do_not_specialize=["n_tokens"])
def _tile_kernel(
    x,  # Stream
    bank,  # SteeringBank
    tokens,  # Tokens
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written in part 0; or None
    max_dose,  # or None
    n_tokens,
    D: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MAX_LATENTS: tl.constexpr,
    WALK_D: tl.constexpr,
    WALK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Program (tile, walker): the tile at once where its tokens share their sets, else one by one.

    A tile's rows are written by walker 0 alone, or each by the walker of its token. Walker 0 walks,
    too, to the tokens of the tile whose change may have to be shortened: the others' bits are then
    the same as without these.
    """
    i_tile = tl.program_id(0).to(tl.int64)
    i_walker = tl.program_id(1)
    o_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    b_row = tl.load(tokens.row + o_t, mask=o_t < n_tokens, other=-1).to(tl.int64)
    b_scale = tl.load(tokens.scale + o_t, mask=b_row >= 0, other=0.0)
    m_t = b_scale != 0
    lead = tl.max(tl.where(m_t, b_row, -1))
    if lead >= 0:
        n_latents = shared_latents(bank, tokens, b_row, m_t, lead, M)
        n_walkers = tl.num_programs(1)
        todo = -1  # a bit for each token that is walked to
        if (n_latents > 0) & (n_latents <= MAX_LATENTS):
            n_walkers = 1
            todo = 0
            if i_walker == 0:
                if n_latents <= 16:
                    todo = steer_tile(
                        x, bank, tokens, p_dose, max_dose, o_t, b_row, b_scale, m_t, lead,
                        D, M, BLOCK_T, BLOCK_M, 16, BLOCK_D, LARGEST,
                    )  # fmt: skip
                else:
                    todo = steer_tile(
                        x, bank, tokens, p_dose, max_dose, o_t, b_row, b_scale, m_t, lead,
                        D, M, BLOCK_T, BLOCK_M, MAX_LATENTS, BLOCK_D, LARGEST,
                    )  # fmt: skip
        if todo != 0:  # also with constants alone, which share nothing but a vector
            o_d = tl.arange(0, WALK_D)
            for i in range(i_walker, BLOCK_T, n_walkers):
                if (i_tile * BLOCK_T + i < n_tokens) & (((todo >> i) & 1) != 0):
                    steer_token(
                        x, bank, tokens, None, None, p_dose, max_dose,
                        i_tile * BLOCK_T + i, 0, o_d, o_d < D,
                        D, M, 1, D, MAX_LATENTS, WALK_K, LARGEST,
                    )  # fmt: skip


def steer_triton_(
    hidden: Tensor,
    residual: Tensor | None,
    *tables: Tensor,
    dose: Tensor | None = None,
    max_dose: float | None = None,
) -> None:
    """The launcher, for fp32, bf16 and fp16: arguments as those of :func:`steer_torch_`."""
    bank, set_slot, strength, token_row, token_scale = from_schema(tables)
    n_tokens, d_model = hidden.shape
    n_pairs = set_slot.shape[1]
    if n_tokens == 0:
        return
    blocks = steer_blocks(n_tokens, d_model, hidden.element_size())
    x, tokens = as_pointers(hidden, residual, token_row, token_scale, set_slot, strength)
    arguments: dict[str, Any] = {
        "x": x,
        "bank": bank,
        "tokens": tokens,
        "D": d_model,
        "M": n_pairs,
        "MAX_LATENTS": MAX_LATENTS,
        "num_warps": blocks.walk.num_warps,
    }
    caps = {"p_dose": dose, "max_dose": max_dose, "LARGEST": largest_norm(hidden.dtype)}
    if blocks.tile_t > 1:
        _tile_kernel[(-(-n_tokens // blocks.tile_t), blocks.n_walkers)](
            **arguments,
            **caps,
            n_tokens=n_tokens,
            BLOCK_M=max(16, next_power_of_2(n_pairs)),
            WALK_D=blocks.walk.block_d,
            WALK_K=blocks.walk.block_k,
            BLOCK_T=blocks.tile_t,
            BLOCK_D=blocks.tile_d,
        )
        return
    arguments |= {
        "p_partial": None,
        "p_x2": None,
        "N_PARTS": blocks.n_parts,
        "PART_D": blocks.part_d,
        "BLOCK_D": blocks.walk.block_d,
        "BLOCK_K": blocks.walk.block_k,
    }
    grid = (n_tokens, blocks.n_parts)
    if blocks.n_parts > 1:
        scratch = partial(hidden.new_empty, dtype=torch.float32)
        arguments["p_partial"] = scratch((n_tokens, n_pairs, MAX_LATENTS, blocks.n_parts))
        arguments["p_x2"] = scratch((n_tokens, blocks.n_parts))
        _partial_kernel[grid](**arguments)
    _token_kernel[grid](**arguments, **caps)
