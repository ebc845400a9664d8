"""Statistics of every latent over many tokens, from a full encode that keeps nothing else."""

from __future__ import annotations

from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl
from saif_kernels.encode._tile import (
    MAX_K,
    PARTS_TOGETHER,
    InputPointers,
    Sae,
    ceil_div,
    check_encode,
    encode_arguments,
    encode_blocks,
    grouped,
    pre_chunks,
    tile_pre,
)
from saif_kernels.encode.topk import MOST_TOKENS, TopK, encode_topk_triton, largest_keys, unpack

_MAX = 3  # the row of the table behind Moments that is no sum


class Moments(NamedTuple):
    """Running statistics of each latent's activation a over n_tokens tokens."""

    n_tokens: int
    n_active: Tensor  # [d_sae] int64, tokens with a > 0
    sum: Tensor  # [d_sae] fp64
    sum_squares: Tensor  # [d_sae] fp64
    max: Tensor  # [d_sae] fp64, 0 = never active
    n_greater: Tensor | None = None  # [d_sae] int64, tokens with a > a(without)
    sum_difference: Tensor | None = None  # [d_sae] fp64, sum of a - a(without)

    def merge(self, other: Moments) -> Moments:
        """Return the statistics over both; ValueError where only one compares with ``without``."""
        if (self.n_greater is None) != (other.n_greater is None):
            raise ValueError("other: expected both or neither to compare with `without`, got one")
        n_greater = sum_difference = None
        if self.n_greater is not None and other.n_greater is not None:
            n_greater = self.n_greater + other.n_greater
        if self.sum_difference is not None and other.sum_difference is not None:
            sum_difference = self.sum_difference + other.sum_difference
        return Moments(
            n_tokens=self.n_tokens + other.n_tokens,
            n_active=self.n_active + other.n_active,
            sum=self.sum + other.sum,
            sum_squares=self.sum_squares + other.sum_squares,
            max=torch.maximum(self.max, other.max),
            n_greater=n_greater,
            sum_difference=sum_difference,
        )


def encode_moments(x: Tensor, sae: Sae, without: Tensor | None = None) -> Moments:
    """Return statistics of every latent over the tokens of ``x``.

    Semantics: with ``a`` the activations (as of :func:`~saif_kernels.encode_topk`, but every active
    latent of a token counts): ``n_active_i = sum_t [a_ti > 0]``, ``sum_i = sum_t a_ti``,
    ``sum_squares_i = sum_t a_ti**2``, ``max_i = max_t a_ti``, and with ``b = a(without)``
    ``n_greater_i = sum_t [a_ti > b_ti]``, ``sum_difference_i = sum_t (a_ti - b_ti)``.

    Extra memory on a GPU is O(d_sae), and O(T * k) for a TopK SAE with a k up to ``MAX_K`` = 256;
    all else never leaves a tile. Sums are fp64. Without a k they are fp32 over up to an eighth of
    the tokens, so that counts would round above 2**24 tokens: split x there, and
    :meth:`Moments.merge`.

    Args:
        x: [T, d_model] of W_enc's dtype, any row stride. For an SAE that normalizes each token,
            the normalized x.
        sae: the SAE; see :class:`~saif_kernels.Sae`.
        without: [T, d_model] as x, or None: row t is what x's row t is compared with.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_encode(x, sae)
    if without is not None:
        if without.shape != x.shape:
            raise ValueError(f"without: expected {list(x.shape)} as x, got {list(without.shape)}")
        check_encode(without, sae)
    threshold = sae.threshold if sae.k is None else None
    table = torch.ops.saif.encode_moments(x, without, sae.W_enc, sae.b_enc, threshold, sae.k)
    n_active, total, squares, largest, *compared = table
    moments = Moments(x.shape[0], n_active.long(), total, squares, largest)
    if without is None:
        return moments
    n_greater, difference = compared
    return moments._replace(n_greater=n_greater.long(), sum_difference=difference)


def encode_moments_torch(
    x: Tensor,
    without: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None,
    k: int | None,
) -> Tensor:
    """Specify :func:`encode_moments`, from the SAE's tensors; also what runs on CPUs.

    ``threshold`` None is 0; ``k`` is that of a TopK SAE, or None. Returns [4, or 6 with
    ``without``, d_sae] fp64: the columns of :class:`Moments` in their order.
    """
    n_rows = 4 if without is None else 6
    table = torch.zeros(n_rows, W_enc.shape[1], dtype=torch.float64, device=x.device)
    n_active, total, squares, largest, *compared = table
    others = repeat(None) if without is None else pre_chunks(without, W_enc, b_enc)
    for (_, pre), other in zip(pre_chunks(x, W_enc, b_enc), others, strict=False):
        a = _activate(pre, threshold, k)
        exact = a.double()
        chunk_total = exact.sum(0)
        n_active += (a > 0).sum(0, dtype=torch.int32)
        total += chunk_total
        squares += exact.square_().sum(0)
        torch.maximum(largest, a.amax(0), out=largest)
        if other is not None:
            b = _activate(other[1], threshold, k)
            n_greater, difference = compared
            n_greater += (a > b).sum(0, dtype=torch.int32)
            difference += chunk_total - b.double().sum(0)
    return table


def _activate(pre: Tensor, threshold: Tensor | None, k: int | None) -> Tensor:
    """Return the activations of pre-activations [n, d_sae]."""
    if k is None:
        return torch.where(pre > (0.0 if threshold is None else threshold), pre, 0.0)
    values, indices = unpack(largest_keys(pre, None, k))
    # An absent latent adds 0 to latent 0.
    return torch.zeros_like(pre).scatter_add_(1, indices.long().clamp(min=0), values)


@jit
def _activations(
    tokens,  # InputPointers
    n_tokens,
    encoder,  # EncoderPointers
    i_t,  # tile of tokens
    i_n,  # tile of latents
    SIZES: tl.constexpr,
):
    """Return one tile of activations: [BLOCK_N, BLOCK_T] fp32, 0 past T."""
    b_pre = tile_pre(tokens, n_tokens, encoder, i_t, i_n, SIZES, LATENTS_FIRST=True)
    o_t = i_t * SIZES.BLOCK_T + tl.arange(0, SIZES.BLOCK_T)
    o_n = i_n * SIZES.BLOCK_N + tl.arange(0, SIZES.BLOCK_N)
    m_t = o_t < n_tokens
    m_active = b_pre > 0
    if encoder.threshold is not None:
        b_threshold = tl.load(encoder.threshold + o_n, mask=o_n < SIZES.N, other=0.0)
        m_active = b_pre > b_threshold[:, None]
    return tl.where(m_active & m_t[None, :], b_pre, 0.0)


@jit
def _moments_kernel(
    tokens,  # InputPointers
    n_tokens,
    without,  # InputPointers, or None
    encoder,  # EncoderPointers
    p_table,  # [n_parts, ROWS, N] fp32, written
    ROWS: tl.constexpr,
    SIZES: tl.constexpr,
):
    """Grid (tile of latents, part of the tokens, group). Write the statistics over the part."""
    N: tl.constexpr = SIZES.N
    BLOCK_N: tl.constexpr = SIZES.BLOCK_N
    i_n = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    if i_n * BLOCK_N >= N:
        return
    b_active = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_sum = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_squares = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_max = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_greater = tl.zeros((BLOCK_N,), dtype=tl.float32)
    b_difference = tl.zeros((BLOCK_N,), dtype=tl.float32)
    n_tiles = tl.cdiv(n_tokens, SIZES.BLOCK_T)
    for i_t in range(tl.program_id(1), n_tiles, tl.num_programs(1)):
        b_a = _activations(tokens, n_tokens, encoder, i_t, i_n, SIZES)
        b_active += tl.sum((b_a > 0).to(tl.float32), axis=1)
        b_sum += tl.sum(b_a, axis=1)
        b_squares += tl.sum(b_a * b_a, axis=1)
        b_max = tl.maximum(b_max, tl.max(b_a, axis=1))
        if without is not None:
            b_without = _activations(without, n_tokens, encoder, i_t, i_n, SIZES)
            b_greater += tl.sum((b_a > b_without).to(tl.float32), axis=1)
            b_difference += tl.sum(b_a - b_without, axis=1)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    p_table += tl.program_id(1) * ROWS * N + o_n
    tl.store(p_table, b_active, mask=m_n)
    tl.store(p_table + N, b_sum, mask=m_n)
    tl.store(p_table + 2 * N, b_squares, mask=m_n)
    tl.store(p_table + 3 * N, b_max, mask=m_n)
    if without is not None:
        tl.store(p_table + 4 * N, b_greater, mask=m_n)
        tl.store(p_table + 5 * N, b_difference, mask=m_n)


def encode_moments_triton(
    x: Tensor,
    without: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None,
    k: int | None,
) -> Tensor:
    """Launch the kernel; arguments and result as of :func:`encode_moments_torch`."""
    n_tokens, d_sae = x.shape[0], W_enc.shape[1]
    if k is not None and k > MAX_K:
        return encode_moments_torch(x, without, W_enc, b_enc, threshold, k)
    if k is not None:
        # A second product, to find the last active latent in, could round otherwise than the first.
        sides = (x,) if without is None else (x, without)
        return _sparse_moments(
            *(encode_topk_triton(side, W_enc, b_enc, None, k) for side in sides), d_sae=d_sae
        )
    blocks = encode_blocks(n_tokens, x.dtype, MOST_TOKENS)
    n_parts = max(min(PARTS_TOGETHER, ceil_div(n_tokens, blocks.T)), 1)
    n_rows = 4 if without is None else 6
    table = torch.empty(n_parts, n_rows, d_sae, dtype=torch.float32, device=x.device)
    other = None if without is None else InputPointers(without, without.stride(0))
    _moments_kernel[grouped(ceil_div(d_sae, blocks.N), n_parts)](
        **encode_arguments(x, W_enc, b_enc, threshold, blocks),
        without=other,
        p_table=table,
        ROWS=n_rows,
    )
    total = table.sum(dim=0, dtype=torch.float64)
    total[_MAX] = table[:, _MAX].amax(dim=0)
    return total


def _sparse_moments(a: TopK, without: TopK | None = None, *, d_sae: int) -> Tensor:
    """Return the table of :func:`encode_moments_torch` from all active latents of each token."""
    # An absent latent adds 0 to latent 0.
    latent, value = a.indices.long().clamp(min=0).flatten(), a.values.double().flatten()
    table = value.new_zeros(4 if without is None else 6, d_sae)
    table[:_MAX].index_add_(1, latent, torch.stack([(value > 0).double(), value, value.square()]))
    table[_MAX].scatter_reduce_(0, latent, value, "amax")
    if without is not None:
        greater = a.values > _values_at(without, a.indices)
        table[4].index_add_(0, latent, greater.flatten().double())
        other = without.indices.long().clamp(min=0).flatten()
        table[5] = table[1]
        table[5].index_add_(0, other, -without.values.double().flatten())
    return table


def _values_at(active: TopK, latents: Tensor) -> Tensor:
    """Return activations [T, k] of each token's ``latents`` [T, k] int32, 0 where not active."""
    known, order = active.indices.sort(dim=1)
    place = torch.searchsorted(known, latents).clamp(max=known.shape[1] - 1)
    values = active.values.gather(1, order.gather(1, place))
    return torch.where(known.gather(1, place) == latents, values, 0.0)
