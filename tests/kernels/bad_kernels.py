"""Kernels with one defect each, and their sound twins: what the ahead-of-time checks must tell."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _row_kernel(
    p_x,  # [T, D]
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * D + tl.arange(0, BLOCK_D)
    b_x = tl.load(p_x + o, mask=tl.arange(0, BLOCK_D) < D)
    tl.store(p_x + o, b_x * 2.0, mask=tl.arange(0, BLOCK_D) < D)


@triton.jit
def _centre_kernel(
    p_x,  # [D]
    D: tl.constexpr,
):
    b_x = tl.load(p_x + tl.arange(0, D))
    tl.store(p_x + tl.arange(0, D), b_x - tl.sum(b_x) / D)


@triton.jit
def _product_kernel(
    p_x,  # [N, N]
    p_W_enc,  # [N, N]
    N: tl.constexpr,
    WIDEN: tl.constexpr,
):
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    b_x = tl.load(p_x + o)
    b_W_enc = tl.load(p_W_enc + o)
    if WIDEN:
        b_sum = tl.dot(b_x.to(tl.float32), b_W_enc.to(tl.float32), input_precision="ieee")
    else:
        b_sum = tl.dot(b_x, b_W_enc)
    tl.store(p_x + o, b_sum.to(b_x.dtype))


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def sound_rows() -> None:
    _row_kernel[(4,)](_meta(4, 2304), D=2304, BLOCK_D=4096)


def narrow_rows() -> None:
    """Rows of an odd length: no thread can load 128 bits at once."""
    _row_kernel[(4,)](_meta(4, 2303), D=2303, BLOCK_D=4096)


def sound_product() -> None:
    _product_kernel[(1,)](_meta(64, 64), _meta(64, 64), N=64, WIDEN=False)


def widened_product() -> None:
    """bf16 widened to fp32: right, and without tensor cores many times slower."""
    _product_kernel[(1,)](_meta(64, 64), _meta(64, 64), N=64, WIDEN=True, num_warps=8)


def spilling_rows() -> None:
    """A whole row in the registers of one warp, which hold a quarter of it."""
    _centre_kernel[(1,)](_meta(32768, dtype=torch.float32), D=32768, num_warps=1)
