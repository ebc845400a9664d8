"""The steering op on CPUs, and wherever there is no kernel: fast, in torch's own ops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from saif_kernels._steer_checks import from_schema
from saif_kernels._steer_dose import largest_norm, rounded_torch
from saif_kernels.bank import SteeringBank
from saif_kernels.steer import steer_blocks

_TILE = 32  # pairs of a token and a set that share one read of the set's rows
_TILES = 8  # tiles at a time


def steer_cpu_(
    hidden: Tensor,
    residual: Tensor | None,
    *tables: Tensor,
    dose: Tensor | None = None,
    max_dose: float | None = None,
) -> None:
    """Steer in torch's own ops; arguments as of :func:`~saif_kernels.steer.steer_reference_`.

    ``index_select`` and ``embedding`` read rows several times as fast as an index does.
    """
    bank, set_slot, strength, token_row, token_scale = from_schema(tables)
    n_tokens = hidden.shape[0]
    token_row, token_scale = token_row[:n_tokens], token_scale[:n_tokens]
    token = ((token_row >= 0) & (token_scale != 0)).nonzero().squeeze(1)
    if token.numel() == 0:
        return
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    request_row = token_row[token].long()
    slot = set_slot.index_select(0, request_row)  # [t, M]
    weight = torch.where(slot >= 0, strength.index_select(0, request_row), 0.0)  # [t, M]
    weight = weight * token_scale[token, None]

    chosen = hidden.index_select(0, token)
    x = chosen if residual is None else chosen + residual.index_select(0, token)
    x = x.to(accumulate)
    # Pairs of a token and a set, sorted by set: a tile of them then reads the set's rows once.
    pair_token, pair = weight.nonzero(as_tuple=True)
    pair_slot, order = slot[pair_token, pair].long().sort(stable=True)
    pair_token, pair_weight = pair_token[order], weight[pair_token, pair][order].to(accumulate)
    change = embedding(pair_slot, bank.vector).to(accumulate)
    if pair_slot.numel() and bank.n_latents[pair_slot].any():
        tile_slot, tile, lane = _tiles(pair_slot)
        xs = x.new_zeros(len(tile_slot), int(lane.max()) + 1, x.shape[1])
        xs[tile, lane] = x.index_select(0, pair_token)
        # A few tiles at a time, whose rows stay in the cache.
        parts = zip(tile_slot.split(_TILES), xs.split(_TILES), strict=True)
        change += torch.cat([_live_change(bank, slots, part) for slots, part in parts])[tile, lane]
    delta = torch.zeros_like(x).index_add_(0, pair_token, pair_weight[:, None] * change)
    n_parts = steer_blocks(n_tokens, hidden.shape[1], hidden.element_size()).n_parts
    delta, sums = _shortened(delta, x, n_parts, largest_norm(hidden.dtype), max_dose)
    if dose is not None:
        dose[token, :n_parts] = sums
    hidden.index_copy_(0, token, rounded_torch(chosen.to(accumulate) + delta, hidden.dtype))


def _live_change(bank: SteeringBank, slot: Tensor, x: Tensor) -> Tensor:
    """Return what live latents add to x [tiles, n, d_model]; tile i has the set ``slot[i]``."""
    i = torch.arange(int(bank.n_latents[slot].max()), device=x.device)
    live = (i < bank.n_latents[slot, None])[:, None]  # [tiles, 1, n_live]
    pool = torch.where(live, bank.offset[slot, None, None] + i, 0)  # indices into the pool
    W_enc, W_dec = (embedding(pool[:, 0], W).to(x.dtype) for W in (bank.W_enc, bank.W_dec))
    pre = x @ W_enc.mT + bank.b_enc[pool]
    a = torch.where(pre > bank.threshold[pool], pre, 0.0)
    edit = torch.maximum(bank.lo[pool].to(x.dtype), bank.p[pool] + bank.q[pool] * a)
    edit = torch.where(live & (~bank.gated[pool] | (a > 0)), edit, 0.0)
    return edit @ W_dec


def _tiles(slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut sorted slots [n] into runs of equal ones, at most ``_TILE`` long.

    Returns the slot of each run [tiles], and for each of the n pairs its run and its place in it.
    """
    slots, sizes = slot.unique_consecutive(return_counts=True)
    n_tiles = (sizes + _TILE - 1) // _TILE
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    first_tile = (n_tiles.cumsum(0) - n_tiles).repeat_interleave(sizes)
    rank = torch.arange(len(slot), device=slot.device) - first
    return slots.repeat_interleave(n_tiles), first_tile + rank // _TILE, rank % _TILE


def _shortened(
    change: Tensor, x: Tensor, n_parts: int, largest: float, max_dose: float | None
) -> tuple[Tensor, Tensor]:
    """Shorten changes [t, d_model] where they are too long for x [t, d_model].

    Returns the changes to add [t, d_model], and their dose [t, n_parts, 2] fp32.
    """
    parts = [_parts(rows, n_parts) for rows in (change, x)]
    dose = torch.stack([torch.linalg.vecdot(part, part) for part in parts], -1)
    change2, x2 = dose.sum(1).unbind(1)
    x_length = x2.sqrt()
    longest = (largest - x_length).clamp_(min=0)
    if max_dose is not None:
        longest = torch.minimum(longest, max_dose * x_length)
    if ((change2 <= longest.square()) & (x2 < torch.inf)).all():  # NaN is not <=, nor <
        return change, dose.float()
    length = change2.sqrt()
    factor = torch.where(length > longest, longest / length, 1.0)[:, None]
    infinite = ~dose.isfinite().all(2).all(1, keepdim=True)
    factor = torch.where(infinite, 0.0, factor)
    change = torch.where(factor > 0, change * factor, 0.0)
    dose[..., 0] *= factor.square()
    dose[..., 1].copy_(torch.where(factor < 1, -dose[..., 1], dose[..., 1]))
    return change, torch.where(infinite[..., None], torch.inf, dose).float()


def _parts(rows: Tensor, n_parts: int) -> Tensor:
    """Cut rows [t, d_model] into [t, n_parts, part_d]; the last part is filled up with 0."""
    padding = -rows.shape[1] % n_parts
    filled = pad(rows, (0, padding)) if padding else rows
    return filled.reshape(len(rows), n_parts, filled.shape[1] // n_parts)
