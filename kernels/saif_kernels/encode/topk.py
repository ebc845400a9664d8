"""The k largest activations of each token, from a full encode that keeps nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from saif_kernels._triton import jit, next_power_of_2, tl
from saif_kernels.encode._tile import (
    MAX_K,
    Sae,
    check_encode,
    encode_arguments,
    encode_blocks,
    encode_grid,
    pre_chunks,
    tile_pre,
)

# An active latent is one int64, its key, that sorts by activation, then by lower index: the bits of
# a positive fp32 above the index's distance from _LAST_INDEX. The key of no latent is negative.
_LAST_INDEX = 2**31 - 1
MOST_TOKENS = 64  # of a tile: the k keys of each lie in registers


class TopK(NamedTuple):
    """Each token's largest activations in descending order; equal ones by index."""

    values: Tensor  # [T, k] fp32, 0 = no further latent is active
    indices: Tensor  # [T, k] int32, -1 = no further latent is active


def encode_topk(x: Tensor, sae: Sae, k: int) -> TopK:
    """Return the k largest activations of each token and their latents.

    Semantics: with ``pre = x @ W_enc + b_enc`` in fp32 and ``a_i = pre_i if pre_i > threshold_i
    else 0``, where a TopK SAE has threshold 0 and at most ``sae.k`` active latents:
    ``values[t, j], indices[t, j]`` = the latent at place j of those with a_i > 0, sorted by
    (-a_i, i).

    Extra memory is O(T * k); pre-activations never leave a tile.

    Args:
        x: [T, d_model] of W_enc's dtype, any row stride. For an SAE that normalizes each token,
            the normalized x.
        sae: the SAE; see :class:`~saif_kernels.Sae`.
        k: 1 to ``MAX_K`` = 256.

    Raises:
        ValueError: a shape, dtype or k does not fit.
    """
    check_encode(x, sae)
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k: expected 1 to {MAX_K}, got {k}")
    d_sae = sae.W_enc.shape[1]
    threshold, most = (sae.threshold, d_sae) if sae.k is None else (None, sae.k)
    n = min(k, most)
    values, indices = torch.ops.saif.encode_topk(x, sae.W_enc, sae.b_enc, threshold, n)
    return TopK(pad(values, (0, k - n)), pad(indices, (0, k - n), value=-1))


def encode_topk_torch(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None,
    k: int,
) -> TopK:
    """Specify :func:`encode_topk`, from the SAE's tensors; also what runs on CPUs.

    ``threshold`` None is 0; 1 <= k <= d_sae.
    """
    key = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
    for tokens, pre in pre_chunks(x, W_enc, b_enc):
        key[tokens] = largest_keys(pre, threshold, k)
    return unpack(key)


def largest_keys(pre: Tensor, threshold: Tensor | None, k: int) -> Tensor:
    """Return the k largest keys [n, k] int64 of pre-activations [n, d_sae] fp32, descending."""
    a = torch.where(pre > (0.0 if threshold is None else threshold), pre, -1.0)
    place = _LAST_INDEX - torch.arange(pre.shape[1], device=pre.device)
    return ((a.view(torch.int32).long() << 32) | place).topk(k, dim=1).values


def unpack(key: Tensor) -> TopK:
    """Return the activations and latents of descending keys [n, k] int64."""
    found = key >= 0
    values = (key >> 32).int().view(torch.float32)
    indices = (_LAST_INDEX - (key & _LAST_INDEX)).int()
    return TopK(torch.where(found, values, 0.0), torch.where(found, indices, -1))


@jit
def largest_key(
    b_a,  # [BLOCK_T, BLOCK_N] fp32, -1 where inactive
    first_n,  # the tile's first latent
    LAST_INDEX: tl.constexpr,
):
    """Return the column and the key, [BLOCK_T] int64 each, of each token's largest activation."""
    b_value, b_column = tl.max(b_a, axis=1, return_indices=True)
    b_bits = b_value.to(tl.int32, bitcast=True).to(tl.int64)
    return b_column, (b_bits << 32) | (LAST_INDEX - first_n - b_column)


@jit
def _topk_kernel(
    tokens,  # InputPointers
    n_tokens,
    encoder,  # EncoderPointers
    p_key,  # [T, n_parts, K] int64, written
    K: tl.constexpr,
    LAST_INDEX: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZES: tl.constexpr,
):
    """Grid (tile, part, group). Write each token's k largest activations in the part's latents."""
    N: tl.constexpr = SIZES.N
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    BLOCK_N: tl.constexpr = SIZES.BLOCK_N
    i_t = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    i_part = tl.program_id(1)
    n_parts = tl.num_programs(1)
    if i_t * BLOCK_T >= n_tokens:
        return
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_n = tl.arange(0, BLOCK_N)
    m_t = (o_t < n_tokens)[:, None]
    o_k = tl.arange(0, BLOCK_K).to(tl.int64)
    # No two keys are equal at first, so that a candidate replaces one. Those past K never give way.
    b_key = tl.where(o_k < K, -1 - o_k, 0x7FFFFFFFFFFFFFFF)[None, :]
    b_key = tl.broadcast_to(b_key, (BLOCK_T, BLOCK_K))
    b_least = tl.min(b_key, axis=1)
    for i_n in range(i_part, tl.cdiv(N, BLOCK_N), n_parts):
        b_pre = tile_pre(tokens, n_tokens, encoder, i_t, i_n, SIZES)
        first_n = i_n * BLOCK_N
        m_n = o_n < N - first_n
        b_threshold = tl.zeros((BLOCK_N,), dtype=tl.float32)
        if encoder.threshold is not None:
            b_threshold = tl.load(encoder.threshold + first_n + o_n, mask=m_n, other=0.0)
        m_active = m_t & m_n[None, :] & (b_pre > b_threshold[None, :])
        b_a = tl.where(m_active, b_pre, -1.0)
        # A sort of every tile would cost as much as its product. But after j tiles only about k / j
        # latents of the next one are among the k largest: these are taken one by one.
        b_column, b_best = largest_key(b_a, first_n, LAST_INDEX)
        while tl.max((b_best > b_least).to(tl.int32), axis=0) > 0:
            m_least = b_key == b_least[:, None]
            b_key = tl.where(m_least, tl.maximum(b_best, b_least)[:, None], b_key)
            b_least = tl.min(b_key, axis=1)
            b_a = tl.where(o_n[None, :] == b_column[:, None], -1.0, b_a)
            b_column, b_best = largest_key(b_a, first_n, LAST_INDEX)
    o_key = (o_t.to(tl.int64)[:, None] * n_parts + i_part) * K + o_k[None, :]
    tl.store(p_key + o_key, b_key, mask=m_t & (o_k < K)[None, :])


def encode_topk_triton(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None,
    k: int,
) -> TopK:
    """Launch the kernel; arguments as of :func:`encode_topk_torch`."""
    n_tokens = x.shape[0]
    blocks = encode_blocks(n_tokens, x.dtype, MOST_TOKENS)
    grid = encode_grid(n_tokens, W_enc.shape[1], blocks)
    key = torch.empty(n_tokens, grid[1] * k, dtype=torch.int64, device=x.device)
    _topk_kernel[grid](
        **encode_arguments(x, W_enc, b_enc, threshold, blocks),
        p_key=key,
        K=k,
        LAST_INDEX=_LAST_INDEX,
        BLOCK_K=next_power_of_2(k),
    )
    return unpack(key.topk(k, dim=1).values)
