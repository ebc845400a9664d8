"""The corrections of Triton's interpreter are right, and still needed."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from interpreter import bf16_as_it_is
from op_inputs import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter's own tests")


@triton.jit
def _product(p_a, p_b, p_product, N: tl.constexpr):
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(p_product + o, tl.dot(tl.load(p_a + o), tl.load(p_b + o)))


@triton.jit
def _cast(p_x, p_cast, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_cast + o, tl.load(p_x + o).to(tl.bfloat16))


def product() -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = torch.empty(16, 16)
    _product[(1,)](a, b, result, 16)
    return result, a.float() @ b.float()


def cast() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    x[:5] = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 3.4e38])
    result = torch.empty(1024, dtype=torch.bfloat16)
    _cast[(1,)](x, result, 1024)
    return result, x.bfloat16()


@pytest.mark.parametrize("case", [product, cast])
def test_bf16_is_put_right(case) -> None:
    torch.testing.assert_close(*case())


def test_nan_stays_nan() -> None:
    result = torch.zeros(1, dtype=torch.bfloat16)
    _cast[(1,)](torch.tensor([torch.nan]), result, 1)
    assert result.isnan().all()


@pytest.mark.parametrize("case", [product, cast])
def test_without_the_correction_it_is_wrong(case) -> None:
    with bf16_as_it_is():
        result, expected = case()
    assert not torch.equal(result, expected), "Triton does this right now: drop our correction"
