"""The full encodes on a GPU, against their own product in Triton and against cuBLAS."""

from __future__ import annotations

import pytest
import torch
from device_timing import Loop
from gemm import gemm
from gpu_report import GEMM
from steer_inputs import relative_error
from torch import Tensor

from saif_kernels.encode.moments import encode_moments_torch, encode_moments_triton
from saif_kernels.encode.topk import encode_topk_torch, encode_topk_triton
from saif_kernels.encode.topk_rank import topk_rank_torch, topk_rank_triton

D_SAE = 65536
SIZES = [(t, d) for d in (2304, 4096) for t in (64, 1024, 8192)]
GATED = 64  # tokens that are compared with the reference
Product = tuple[Tensor, Tensor, Tensor]  # x, W_enc, b_enc


@pytest.fixture
def product(t: int, d: int) -> Product:
    W_enc = torch.randn(d, D_SAE, dtype=torch.bfloat16, device="cuda").div_(d**0.5)
    x = torch.randn(t, d, dtype=torch.bfloat16, device="cuda")
    return x, W_enc, torch.randn(D_SAE, device="cuda") / 4


def loops(call, product: Product) -> dict:
    """Each W_enc exceeds the L2 cache, so that there is nothing to rotate."""
    x, W_enc, b_enc = product
    half_b_enc = b_enc.to(x.dtype)
    return {
        "candidate": Loop(call, [product] * 4),
        "floor_bytes": x.nbytes + W_enc.nbytes,
        "baselines": {
            GEMM: Loop(gemm, [product] * 4),
            "cuBLAS": Loop(torch.addmm, [(half_b_enc, x, W_enc)] * 4),
        },
    }


@pytest.mark.parametrize(("t", "d"), SIZES)
def test_encode_topk(measure, product: Product, t: int, d: int) -> None:
    def call(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> object:
        return encode_topk_triton(x, W_enc, b_enc, None, 32)

    x, *weights = product
    expected = encode_topk_torch(x[:GATED], *weights, None, 32)
    assert relative_error(call(*product).values[:GATED], expected.values) < 1e-4
    measure("encode_topk", (t, 1, 32, d), **loops(call, product))


@pytest.mark.parametrize("k", [16, 64])
@pytest.mark.parametrize(("t", "d"), SIZES)
def test_topk_rank(measure, product: Product, t: int, d: int, k: int) -> None:
    latents = torch.arange(k, device="cuda") * (D_SAE // k)

    def call(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        return topk_rank_triton(x, W_enc, b_enc, latents)

    x, *weights = product
    difference = call(*product)[:GATED] - topk_rank_torch(x[:GATED], *weights, latents)
    assert difference.abs().max() <= 4  # neighbours in rank differ by rounding
    measure("topk_rank", (t, 1, k, d), **loops(call, product))


@pytest.mark.parametrize(("t", "d"), SIZES)
def test_encode_moments(measure, product: Product, t: int, d: int) -> None:
    def call(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        return encode_moments_triton(x, None, W_enc, b_enc, None, None)

    x, *weights = product
    gated = x[:GATED], None, *weights, None, None
    sums = encode_moments_triton(*gated)[1:], encode_moments_torch(*gated)[1:]
    assert relative_error(*sums) < 1e-4
    measure("encode_moments", (t, 1, 0, d), **loops(call, product))
