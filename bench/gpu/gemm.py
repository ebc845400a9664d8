"""The product of the full encodes alone: the yardstick of what their epilogues cost."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl
from saif_kernels.encode._tile import encode_arguments, encode_blocks, encode_grid, tile_pre


@jit
def _gemm_kernel(
    tokens,  # InputPointers
    n_tokens,
    encoder,  # EncoderPointers
    p_pre,  # [T, N], written
    SIZES: tl.constexpr,
):
    """Grid (tile, part, group). Write the pre-activations of the tile for the part's latents."""
    N: tl.constexpr = SIZES.N
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    BLOCK_N: tl.constexpr = SIZES.BLOCK_N
    i_t = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    if i_t * BLOCK_T >= n_tokens:
        return
    for i_n in range(tl.program_id(1), tl.cdiv(N, BLOCK_N), tl.num_programs(1)):
        b_pre = tile_pre(tokens, n_tokens, encoder, i_t, i_n, SIZES)
        o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        p = p_pre + o_t.to(tl.int64)[:, None] * N + o_n[None, :]
        m = (o_t < n_tokens)[:, None] & (o_n < N)[None, :]
        tl.store(p, b_pre.to(p_pre.dtype.element_ty), mask=m)


def gemm(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """Return ``x @ W_enc + b_enc`` [T, d_sae] of x's dtype, by the tiles of the full encodes."""
    n_tokens, d_sae = x.shape[0], W_enc.shape[1]
    blocks = encode_blocks(n_tokens, x.dtype)
    pre = torch.empty(n_tokens, d_sae, dtype=x.dtype, device=x.device)
    _gemm_kernel[encode_grid(n_tokens, d_sae, blocks)](
        **encode_arguments(x, W_enc, b_enc, None, blocks), p_pre=pre
    )
    return pre
