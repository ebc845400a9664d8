"""The steering op: encode the chosen latents, edit them, add their decoder rows, in place."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saif_kernels._steer_checks import check_batch, check_dose, from_schema
from saif_kernels._steer_dose import DOSE_PARTS, largest_norm, rounded_torch
from saif_kernels._steer_tile import TileSizes, shared_latents, steer_tile
from saif_kernels._steer_token import (
    PartialPointers,
    Sizes,
    WalkBlocks,
    as_pointers,
    part_channels,
    pre_activations,
    steer_token,
    stream_at,
    walk_blocks,
)
from saif_kernels._triton import jit, next_power_of_2, tl, warp_size
from saif_kernels.bank import MAX_LATENTS, SteeringBank
from saif_kernels.request_rows import RequestRows

FEW_TOKENS = 64  # up to here each token has programs of its own, beyond there are tiles
TILE_TOKENS = 16  # the least that tl.dot takes


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
    -1 or scale 0 keep their bits. In fp16 the cast makes no finite number infinite.

    A change that is too long is shortened, in fp32, to ``min(max_dose * |x|, largest - |x|)``, at
    least 0. ``largest`` is 2**15 in fp16, where more would leave later layers no room, and 2**40
    elsewhere. A token keeps its bits where the squares of its change or of x do not add up to a
    finite number.

    Args:
        hidden: [T, d_model] fp32, bf16 or fp16 (fp64 is computed in fp64). Written in place.
        residual: [T, d_model] same dtype, or None where ``hidden`` is already the residual stream.
            Read only.
        bank: tables of this layer.
        rows: sets and strengths of each request.
        token_row: [T] int32, request row of each token, -1 = untouched.
        token_scale: [T] fp32, scale of each token.
        dose: [>= T, DOSE_PARTS, 2] fp32, or None. For every steered token (one with a request row
            and a scale other than 0) and every part p of its channels, ``dose[t, p]`` becomes (sum
            of change**2, sum of x**2), with the marks that ``_steer_dose.py`` defines. change is
            what is added, in fp32 before the cast. A call cuts the channels into one part or into
            DOSE_PARTS; nothing else is written.
        max_dose: the most |change| / |x| of a token; None = no cap.

    Raises:
        ValueError: a shape, stride or dtype does not fit, or max_dose is not above 0; nothing was
            written.

    Examples:
        >>> bank.write_set(slot=0, offset=0, edits=edits)
        >>> rows.write_row(0, [(0, 1.2)], prompt_len=9)  # request row 0: slot 0's set, times 1.2
        >>> steer_(hidden, residual, bank, rows, token_row, token_scale)
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


def steer_reference_(
    hidden: Tensor,
    residual: Tensor | None,
    *tables: Tensor,
    dose: Tensor | None = None,
    max_dose: float | None = None,
) -> None:
    """Specify :func:`steer_`, over the op's flat ``tables``: one token, set and latent at a time.

    Everything is computed in fp64 and cast once. The dose has one part.
    """
    bank, set_slot, strength, token_row, token_scale = from_schema(tables)
    largest = largest_norm(hidden.dtype)
    # A sum of squares is finite where the ops, which add it up in fp32, can hold it.
    most = torch.finfo(torch.promote_types(hidden.dtype, torch.float32)).max
    for t in range(hidden.shape[0]):
        request_row, scale = int(token_row[t]), float(token_scale[t])
        if request_row < 0 or scale == 0:
            continue
        x = (hidden[t] if residual is None else hidden[t] + residual[t]).double()
        change = torch.zeros_like(x)
        pairs = zip(set_slot[request_row].tolist(), strength[request_row].tolist(), strict=True)
        for slot, weight in pairs:
            if slot >= 0:
                change += scale * weight * _set_change(bank, slot, x)
        change2, x2 = float(change @ change), float(x @ x)
        sums = math.inf, math.inf
        if change2 <= most and x2 <= most:  # NaN is not <=
            longest = max(largest - math.sqrt(x2), 0.0)
            if max_dose is not None:
                longest = min(longest, max_dose * math.sqrt(x2))
            sums = change2, x2
            if math.sqrt(change2) > longest:
                factor = longest / math.sqrt(change2)
                change *= factor
                sums = change2 * factor**2, -x2
            hidden[t] = rounded_torch(hidden[t].double() + change, hidden.dtype)
        if dose is not None:
            dose[t, 0] = torch.tensor(sums, dtype=torch.float64)


def _set_change(bank: SteeringBank, slot: int, x: Tensor) -> Tensor:
    """Return ``vector_s + sum_i D_i * W_dec_i`` [d_model] fp64 for x [d_model] fp64."""
    change = bank.vector[slot].double()
    first = int(bank.offset[slot])
    for i in range(first, first + int(bank.n_latents[slot])):
        pre = float(bank.W_enc[i].double() @ x) + float(bank.b_enc[i])
        a = pre if pre > float(bank.threshold[i]) else 0.0
        edit = max(float(bank.lo[i]), float(bank.p[i]) + float(bank.q[i]) * a)
        if bool(bank.gated[i]) and not a > 0:
            edit = 0.0
        change = change + edit * bank.W_dec[i].double()
    return change


class SteerBlocks(NamedTuple):
    """The division of a launch among programs."""

    n_parts: int  # of a token's channels, each steered by a program; 1 where there are tiles
    part_d: int  # channels of a part
    walk: WalkBlocks  # of a program that steers a part of one token
    tile_t: int  # tokens of a tile; 1 where there are no tiles
    tile_d: int  # channels of a tile's step
    n_walkers: int  # programs that share the tokens of a tile whose sets differ


def steer_blocks(n_tokens: int, d_model: int, itemsize: int) -> SteerBlocks:
    """Choose blocks for ``n_tokens`` padded tokens, by shapes alone, so that a CUDA graph may keep
    them.
    """
    few = n_tokens <= FEW_TOKENS
    # A program streams two rows per latent. Rows above 8 KiB would take it too long.
    n_parts = DOSE_PARTS if few and d_model * itemsize > 8192 else 1
    part_d = -(-d_model // n_parts)
    walk = walk_blocks(part_d, itemsize)
    return SteerBlocks(
        n_parts=n_parts,
        part_d=part_d,
        walk=walk,
        tile_t=1 if few else TILE_TOKENS,
        tile_d=walk.num_warps * warp_size() // itemsize,  # 16 bytes per thread, the widest load
        n_walkers=TILE_TOKENS if n_tokens <= 2048 else 4,
    )


@jit
def _partial_kernel(
    x,  # StreamPointers
    bank,  # SteeringBank
    tokens,  # TokenPointers
    partials,  # PartialPointers, written
    SIZES: tl.constexpr,
):
    """Grid (token, part). Write the part's share of the pre-activations and of the sum of x**2."""
    i_t = tl.program_id(0).to(tl.int64)
    i_part = tl.program_id(1)
    o_d, m_d = part_channels(i_part, SIZES)
    request_row = tl.load(tokens.request_row + i_t).to(tl.int64)
    if request_row >= 0:
        b_x = stream_at(x, i_t, o_d, m_d).to(tl.float32)
        tl.store(partials.x2 + i_t * SIZES.N_PARTS + i_part, tl.sum(b_x * b_x, axis=0))
        for i_pair in range(SIZES.M):
            slot = tl.load(tokens.set_slot + request_row * tokens.slot_stride + i_pair).to(tl.int64)
            if slot >= 0:
                first = tl.load(bank.offset + slot).to(tl.int64)
                n_latents = tl.load(bank.n_latents + slot)
                for i_k in tl.range(0, n_latents, SIZES.BLOCK_K, num_stages=3):
                    o_k = i_k + tl.arange(0, SIZES.BLOCK_K)
                    m_k = o_k < n_latents
                    b_pre = pre_activations(b_x, bank, first + o_k, m_k, o_d, m_d, SIZES)
                    o_partial = (i_t * SIZES.M + i_pair) * SIZES.MAX_LATENTS + o_k
                    p_partial = partials.pre + o_partial * SIZES.N_PARTS + i_part
                    tl.store(p_partial, b_pre, mask=m_k)


@jit
def _token_kernel(
    x,  # StreamPointers
    bank,  # SteeringBank
    tokens,  # TokenPointers
    partials,  # PartialPointers; None where there is one part
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written; or None
    max_dose,  # or None
    SIZES: tl.constexpr,
):
    """Grid (token, part). Steer the part's channels of the token."""
    i_t = tl.program_id(0).to(tl.int64)
    steer_token(x, bank, tokens, partials, p_dose, max_dose, i_t, tl.program_id(1), SIZES)


@jit(do_not_specialize=["n_tokens"])
def _tile_kernel(
    x,  # StreamPointers
    bank,  # SteeringBank
    tokens,  # TokenPointers
    p_dose,  # [T, DOSE_PARTS, 2] fp32, written in part 0; or None
    max_dose,  # or None
    n_tokens,
    SIZES: tl.constexpr,
    TILE: tl.constexpr,  # TileSizes
):
    """Grid (tile, walker). If all steered tokens of the tile have the same sets, walker 0 steers
    them together with tl.dot. Otherwise the walkers share the tokens and steer them one by one.

    Walker 0 also goes, one by one, to the tokens of a shared tile whose change may have to be
    shortened. So the other tokens' bits do not depend on these.
    """
    i_tile = tl.program_id(0).to(tl.int64)
    i_walker = tl.program_id(1)
    first_t = i_tile * TILE.BLOCK_T
    o_t = first_t + tl.arange(0, TILE.BLOCK_T)
    p_request_row = tokens.request_row + o_t
    b_request_row = tl.load(p_request_row, mask=o_t < n_tokens, other=-1).to(tl.int64)
    b_scale = tl.load(tokens.scale + o_t, mask=b_request_row >= 0, other=0.0)
    m_t = b_scale != 0
    lead_row = tl.max(tl.where(m_t, b_request_row, -1))
    if lead_row >= 0:
        n_latents = shared_latents(bank, tokens, b_request_row, m_t, lead_row, SIZES)
        n_walkers = tl.num_programs(1)
        one_by_one = -1  # a bit per token: all
        if (n_latents > 0) & (n_latents <= SIZES.MAX_LATENTS):
            n_walkers = 1
            one_by_one = 0
            if i_walker == 0:
                if n_latents <= 16:
                    one_by_one = steer_tile(
                        x, bank, tokens, p_dose, max_dose,
                        o_t, b_request_row, b_scale, m_t, lead_row, SIZES, TILE, BLOCK_K=16,
                    )  # fmt: skip
                else:
                    one_by_one = steer_tile(
                        x, bank, tokens, p_dose, max_dose,
                        o_t, b_request_row, b_scale, m_t, lead_row, SIZES, TILE,
                        BLOCK_K=SIZES.MAX_LATENTS,
                    )  # fmt: skip
        # Sets of constants alone come here, too: their tokens would share nothing but a vector.
        if one_by_one != 0:
            for i in range(i_walker, TILE.BLOCK_T, n_walkers):
                if (first_t + i < n_tokens) & (((one_by_one >> i) & 1) != 0):
                    steer_token(x, bank, tokens, None, p_dose, max_dose, first_t + i, 0, SIZES)


def steer_triton_(
    hidden: Tensor,
    residual: Tensor | None,
    *tables: Tensor,
    dose: Tensor | None = None,
    max_dose: float | None = None,
) -> None:
    """Launch the kernels, for fp32, bf16 and fp16; arguments as of :func:`steer_reference_`."""
    bank, set_slot, strength, token_row, token_scale = from_schema(tables)
    n_tokens, d_model = hidden.shape
    n_pairs = set_slot.shape[1]
    if n_tokens == 0:
        return
    blocks = steer_blocks(n_tokens, d_model, hidden.element_size())
    x, tokens = as_pointers(hidden, residual, token_row, token_scale, set_slot, strength)
    sizes = Sizes(
        D=d_model,
        M=n_pairs,
        MAX_LATENTS=MAX_LATENTS,
        LARGEST=largest_norm(hidden.dtype),
        N_PARTS=blocks.n_parts,
        PART_D=blocks.part_d,
        BLOCK_D=blocks.walk.block_d,
        BLOCK_K=blocks.walk.block_k,
    )
    if blocks.tile_t > 1:
        tile = TileSizes(blocks.tile_t, max(16, next_power_of_2(n_pairs)), blocks.tile_d)
        _tile_kernel[(-(-n_tokens // blocks.tile_t), blocks.n_walkers)](
            x=x,
            bank=bank,
            tokens=tokens,
            p_dose=dose,
            max_dose=max_dose,
            n_tokens=n_tokens,
            SIZES=sizes,
            TILE=tile,
            num_warps=blocks.walk.num_warps,
        )
        return
    grid = (n_tokens, blocks.n_parts)
    partials = None
    if blocks.n_parts > 1:
        shape = (n_tokens, n_pairs, MAX_LATENTS, blocks.n_parts)
        partials = PartialPointers(
            pre=hidden.new_empty(shape, dtype=torch.float32),
            x2=hidden.new_empty((n_tokens, blocks.n_parts), dtype=torch.float32),
        )
        _partial_kernel[grid](
            x=x,
            bank=bank,
            tokens=tokens,
            partials=partials,
            SIZES=sizes,
            num_warps=blocks.walk.num_warps,
        )
    _token_kernel[grid](
        x=x,
        bank=bank,
        tokens=tokens,
        partials=partials,
        p_dose=dose,
        max_dose=max_dose,
        SIZES=sizes,
        num_warps=blocks.walk.num_warps,
    )
