"""The rank of chosen latents among all pre-activations: exact TopK membership without a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._triton import jit, next_power_of_2, tl
from saif_kernels.encode._tile import (
    Sae,
    check_encode,
    encode_arguments,
    encode_blocks,
    encode_grid,
    pre_chunks,
    tile_pre,
)

LATENTS = 64  # of a launch, at most: their counts lie in registers
_MANY_LATENTS = 32  # above this, the counts of 128 tokens would not fit


def topk_rank(x: Tensor, sae: Sae, latents: Tensor) -> Tensor:
    """Return the rank of chosen latents among all latents of the SAE.

    Semantics: ``rank[t, l]`` = the number of latents j with ``pre_j > pre_i``, or ``pre_j == pre_i
    and j < i``, for ``i = latents[l]`` and ``pre = x_t @ W_enc + b_enc`` in fp32. A latent of a
    TopK SAE is active where its rank is below ``sae.k`` and its pre-activation positive.

    Extra memory is O(T * L); pre-activations never leave a tile.

    Args:
        x: [T, d_model] of W_enc's dtype, any row stride. For an SAE that normalizes each token,
            the normalized x.
        sae: the SAE; see :class:`~saif_kernels.Sae`. Neither threshold nor k are read.
        latents: [L] int32 or int64, in 0 .. d_sae - 1 (not checked: no value leaves the device).

    Returns:
        [T, L] int32.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_encode(x, sae)
    if latents.ndim != 1 or latents.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"latents: expected [L] torch.int32 or torch.int64, "
            f"got {list(latents.shape)} {latents.dtype}"
        )
    rank: Tensor = torch.ops.saif.topk_rank(x, sae.W_enc, sae.b_enc, latents)
    return rank


def topk_rank_torch(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    latents: Tensor,
) -> Tensor:
    """Specify :func:`topk_rank`, from the SAE's tensors; also what runs on CPUs."""
    rank = torch.empty(x.shape[0], latents.shape[0], dtype=torch.int32, device=x.device)
    index = torch.arange(W_enc.shape[1], device=x.device)
    for tokens, pre in pre_chunks(x, W_enc, b_enc):
        for place, latent in enumerate(latents):
            chosen = pre.index_select(1, latent)
            before = (pre > chosen) | ((pre == chosen) & (index < latent))
            rank[tokens, place] = before.sum(dim=1).int()
    return rank


@jit(do_not_specialize=["counts"])
def _rank_kernel(
    tokens,  # InputPointers
    n_tokens,
    encoder,  # EncoderPointers
    p_latent,  # [L] int32
    p_chosen,  # [T, L] fp32: the chosen latents' pre-activations, written by the first launch
    p_rank,  # [T, L] int32, added to by the second launch
    counts,  # 0 in the first launch, 1 in the second
    L: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SIZES: tl.constexpr,
):
    """Grid (tile, part, group). Count the part's latents that come before each chosen one.

    A chosen latent's pre-activation must come from the same tile of the same kernel, because
    another product may round otherwise. So this kernel is launched twice.
    """
    N: tl.constexpr = SIZES.N
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    BLOCK_N: tl.constexpr = SIZES.BLOCK_N
    i_t = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    if i_t * BLOCK_T >= n_tokens:
        return
    o_n = tl.arange(0, BLOCK_N)
    o_l = tl.arange(0, BLOCK_L)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_chosen = o_t.to(tl.int64) * L
    m_t = o_t < n_tokens
    b_tile = tl.load(p_latent + o_l, mask=o_l < L, other=-1) // BLOCK_N
    b_rank = tl.zeros((BLOCK_T, BLOCK_L), dtype=tl.int32)
    for i_n in range(tl.program_id(1), tl.cdiv(N, BLOCK_N), tl.num_programs(1)):
        n_chosen = tl.sum(((b_tile == i_n) & (o_l < L)).to(tl.int32), axis=0)
        if (counts != 0) | (n_chosen > 0):
            b_pre = tile_pre(tokens, n_tokens, encoder, i_t, i_n, SIZES)
            first_n = i_n * BLOCK_N
            b_pre = tl.where((o_n < N - first_n)[None, :], b_pre, float("-inf"))
            for i_l in range(L):
                latent = tl.load(p_latent + i_l)
                if counts != 0:
                    b_chosen = tl.load(p_chosen + o_chosen + i_l, mask=m_t, other=0.0)[:, None]
                    # Equal latents count where their index is lower. Nearly every tile lies on one
                    # side of the chosen latent, and there one comparison decides.
                    if first_n + BLOCK_N <= latent:
                        m_before = b_pre >= b_chosen
                    elif first_n > latent:
                        m_before = b_pre > b_chosen
                    else:
                        m_lower = (o_n < latent - first_n)[None, :]
                        m_before = (b_pre > b_chosen) | ((b_pre == b_chosen) & m_lower)
                    b_before = tl.sum(m_before.to(tl.int32), axis=1)
                    b_rank += tl.where(o_l[None, :] == i_l, b_before[:, None], 0)
                elif (first_n <= latent) & (latent < first_n + BLOCK_N):
                    m_own = (o_n == latent - first_n)[None, :]
                    b_own = tl.sum(tl.where(m_own, b_pre, 0.0), axis=1)
                    tl.store(p_chosen + o_chosen + i_l, b_own, mask=m_t)
    if counts != 0:
        o_rank = o_chosen[:, None] + o_l[None, :]
        m_rank = m_t[:, None] & (o_l < L)[None, :]
        tl.atomic_add(p_rank + o_rank, b_rank, mask=m_rank, sem="relaxed")


def topk_rank_triton(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    latents: Tensor,
) -> Tensor:
    """Launch the kernel, twice for each ``LATENTS`` of the latents; as :func:`topk_rank_torch`."""
    if latents.shape[0] > LATENTS:
        parts = [topk_rank_triton(x, W_enc, b_enc, part) for part in latents.split(LATENTS)]
        return torch.cat(parts, dim=1)
    n_tokens, n_latents = x.shape[0], latents.shape[0]
    rank = torch.zeros(n_tokens, n_latents, dtype=torch.int32, device=x.device)
    if n_latents == 0:
        return rank
    latents = latents.to(torch.int32).contiguous()
    blocks = encode_blocks(n_tokens, x.dtype, 128 if n_latents <= _MANY_LATENTS else 64)
    grid = encode_grid(n_tokens, W_enc.shape[1], blocks)
    chosen = torch.empty(n_tokens, n_latents, dtype=torch.float32, device=x.device)
    for counts in (0, 1):
        _rank_kernel[grid](
            **encode_arguments(x, W_enc, b_enc, None, blocks),
            p_latent=latents,
            p_chosen=chosen,
            p_rank=rank,
            counts=counts,
            L=n_latents,
            BLOCK_L=next_power_of_2(n_latents),
        )
    return rank
