"""The product of the full encodes alone: the yardstick of what their epilogues cost."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl
from saif_kernels.encode import encode_blocks, encode_grid, tile_pre


@jit
def _gemm_kernel(
    p_x,  # [T, D]
    p_W_enc,  # [D, N]
    p_b_enc,  # [N] fp32
    p_pre,  # [T, N], written
    T,
    stride_x,
    stride_W_enc,
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (tile, part, group): the pre-activations of the tile for the part's latents."""
    i_t = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    if i_t * BLOCK_T >= T:
        return
    for i_n in range(tl.program_id(1), tl.cdiv(N, BLOCK_N), tl.num_programs(1)):
        b_pre = tile_pre(
            p_x, p_W_enc, p_b_enc, i_t, i_n, T, stride_x, stride_W_enc,
            D, N, BLOCK_T, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        p = p_pre + o_t.to(tl.int64)[:, None] * N + o_n[None, :]
        tl.store(p, b_pre.to(p_pre.dtype.element_ty), mask=(o_t < T)[:, None] & (o_n < N)[None, :])


def gemm(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """``x @ W_enc + b_enc`` [T, d_sae] of x's dtype, tile by tile as the full encodes do it."""
    (n_tokens, d_model), d_sae = x.shape, W_enc.shape[1]
    blocks = encode_blocks(n_tokens, x.dtype)
    pre = torch.empty(n_tokens, d_sae, dtype=x.dtype, device=x.device)
    _gemm_kernel[encode_grid(n_tokens, d_sae, blocks)](
        p_x=x,
        p_W_enc=W_enc,
        p_b_enc=b_enc,
        p_pre=pre,
        T=n_tokens,
        stride_x=x.stride(0),
        stride_W_enc=W_enc.stride(0),
        D=d_model,
        N=d_sae,
        BLOCK_T=blocks.T,
        BLOCK_N=blocks.N,
        BLOCK_D=blocks.D,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    return pre
