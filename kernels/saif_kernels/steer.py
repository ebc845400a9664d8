"""The steering op: encode the chosen latents, edit, add their decoder rows, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels.bank import SteeringBank
from saif_kernels.rows import RequestRows

_TILE = 32  # pairs of a token and a set that share one read of the set's rows


def steer_torch_(
    hidden: Tensor,
    residual: Tensor | None,
    bank: SteeringBank,
    rows: RequestRows,
    token_row: Tensor,
    token_scale: Tensor,
) -> None:
    """Steer the tokens of a batch, each with the sets of its request: the torch reference.

    Semantics: with ``x = round_dtype(hidden + residual)``, then in fp32, for every pair (set s,
    strength w_s) of the token's row and every live latent i of s::

        pre_i = <x, W_enc_i> + b_enc_i
        a_i   = pre_i if pre_i > threshold_i else 0
        D_i   = max(lo_i, p_i + q_i * a_i) * (1 if not gated_i or a_i > 0 else 0)
        hidden' = cast(hidden + scale_t * sum_s w_s * (vector_s + sum_i D_i * W_dec_i))

    All D_i come from the same x, so the order of latents and sets does not matter. Tokens of row
    -1 or scale 0 keep their bits.

    Args:
        hidden: [T, d_model] fp32, bf16 or fp16 (fp64 is computed in fp64). Written in place.
        residual: [T, d_model] same dtype, or None where ``hidden`` is already the residual stream.
            Read only.
        bank: tables of this layer.
        rows: sets and strengths of each request.
        token_row: [T] int32, row of each token, -1 = untouched.
        token_scale: [T] fp32, scale of each token.
    """
    steer_reference(hidden, residual, *bank, rows.set_slot, rows.strength, token_row, token_scale)


def steer_(
    hidden: Tensor,
    residual: Tensor | None,
    bank: SteeringBank,
    rows: RequestRows,
    token_row: Tensor,
    token_scale: Tensor,
) -> None:
    """Steer in place through ``torch.ops.saif.steer_``; as :func:`steer_torch_`.

    Raises:
        ValueError: a shape or dtype does not fit; nothing was written.
    """
    if hidden.ndim != 2 or hidden.shape[1] != bank.W_enc.shape[1]:
        raise ValueError(
            f"hidden: expected [tokens, {bank.W_enc.shape[1]}], got {list(hidden.shape)}"
        )
    if residual is not None and (residual.shape != hidden.shape or residual.dtype != hidden.dtype):
        raise ValueError(
            f"residual: expected {list(hidden.shape)} {hidden.dtype}, "
            f"got {list(residual.shape)} {residual.dtype}"
        )
    if token_row.shape[0] < hidden.shape[0] or token_scale.shape[0] < hidden.shape[0]:
        raise ValueError(
            f"token_row and token_scale: expected at least {hidden.shape[0]} tokens, "
            f"got {token_row.shape[0]} and {token_scale.shape[0]}"
        )
    torch.ops.saif.steer_(
        hidden, residual, *bank, rows.set_slot, rows.strength, token_row, token_scale
    )


def steer_reference(
    hidden: Tensor,
    residual: Tensor | None,
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor,
    threshold: Tensor,
    p: Tensor,
    q: Tensor,
    lo: Tensor,
    gated: Tensor,
    offset: Tensor,
    n_latents: Tensor,
    vector: Tensor,
    set_slot: Tensor,
    strength: Tensor,
    token_row: Tensor,
    token_scale: Tensor,
) -> None:
    """The implementation behind both, over the flat tensors of a schema."""
    n_tokens = hidden.shape[0]
    token_row, token_scale = token_row[:n_tokens], token_scale[:n_tokens]
    token = ((token_row >= 0) & (token_scale != 0)).nonzero().squeeze(1)
    if token.numel() == 0:
        return
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    row = token_row[token].long()
    slot = set_slot[row]  # [t, M]
    weight = torch.where(slot >= 0, strength[row], 0.0) * token_scale[token, None]  # [t, M]

    chosen = hidden[token]
    x = (chosen if residual is None else chosen + residual[token]).to(accumulate)
    # Pairs of a token and a set, sorted by set: tiles of them then read a set's rows once.
    pair_token, pair = weight.nonzero(as_tuple=True)
    pair_slot, order = slot[pair_token, pair].long().sort(stable=True)
    pair_token, pair_weight = pair_token[order], weight[pair_token, pair][order].to(accumulate)
    change = vector[pair_slot].to(accumulate)
    if pair_slot.numel() and (n_live := int(n_latents[pair_slot].max())):
        tile_slot, tile, lane = _tiles(pair_slot)
        xs = x.new_zeros(len(tile_slot), int(lane.max()) + 1, x.shape[1])
        xs[tile, lane] = x[pair_token]
        i = torch.arange(n_live, device=hidden.device)
        live = (i < n_latents[tile_slot, None])[:, None]  # [tiles, 1, n_live]
        rows = torch.where(live, offset[tile_slot, None, None] + i, 0)
        pre = xs @ W_enc[rows[:, 0]].to(accumulate).mT + b_enc[rows]
        a = torch.where(pre > threshold[rows], pre, 0.0)
        edit = torch.maximum(lo[rows].to(accumulate), p[rows] + q[rows] * a)
        edit = torch.where(live & (~gated[rows] | (a > 0)), edit, 0.0)
        change += (edit @ W_dec[rows[:, 0]].to(accumulate))[tile, lane]
    delta = torch.zeros_like(x).index_add_(0, pair_token, pair_weight[:, None] * change)
    hidden[token] = (chosen.to(accumulate) + delta).to(hidden.dtype)


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
