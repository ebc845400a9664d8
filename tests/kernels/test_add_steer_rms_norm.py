"""The fused final norm equals steering, then the norm as vLLM does it."""

from __future__ import annotations

import pytest
import torch
from op_inputs import DEVICE
from steering_cases import Case, make_case

from saif_kernels import add_steer_rms_norm, steer_
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm_torch, add_steer_rms_norm_triton

EPS = 1e-6
# Largest error over the largest value.
TOLERANCE = {
    torch.float32: 3e-6,  # fp32 sums in another order
    torch.bfloat16: 2**-7,  # one unit in the last of 8 bits, where the sums straddle it
    torch.float16: 2**-10,  # likewise, of 11 bits
}


def weight_of(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(case.hidden.shape[1], generator=generator)
    return weight.to(case.hidden)


def unfused(case: Case, gemma: bool) -> torch.Tensor:
    """steer_, then vLLM's fused_add_rms_norm in words of torch."""
    hidden, weight = case.hidden.clone(), weight_of(case)
    steer_(hidden, *case[1:])
    x = hidden.float() if case.residual is None else hidden.float() + case.residual.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    if gemma:
        return (x * (weight.float() + 1)).to(hidden.dtype)
    return x.to(hidden.dtype) * weight


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("gemma", [False, True], ids=["plain", "gemma"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize(("n_tokens", "d_model"), [(1, 64), (7, 300), (20, 2304)])
def test_equals_steering_and_the_norm(
    dtype: torch.dtype, gemma: bool, with_residual: bool, n_tokens: int, d_model: int
) -> None:
    case = make_case(
        n_tokens=n_tokens, d_model=d_model, dtype=dtype, with_residual=with_residual, seed=5
    ).to(DEVICE)
    expected = unfused(case, gemma)
    for implementation in (add_steer_rms_norm_torch, add_steer_rms_norm_triton):
        before = case.hidden.clone()
        normed = implementation(*case[:2], weight_of(case), EPS, gemma, *case.flat()[2:])
        assert torch.equal(case.hidden, before)
        error = (normed.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error <= TOLERANCE[dtype]


def test_strided_inputs_and_no_tokens() -> None:
    case = make_case(n_tokens=12).to(DEVICE)
    expected = unfused(case, gemma=False)
    wide = torch.full((12, 70), torch.nan, device=DEVICE)
    wide[:, :64] = case.hidden
    for n_tokens in (12, 0):
        strided = case._replace(hidden=wide[:n_tokens, :64], residual=case.residual[:n_tokens])
        normed = add_steer_rms_norm_triton(
            *strided[:2], weight_of(case), EPS, False, *strided.flat()[2:]
        )
        torch.testing.assert_close(normed, expected[:n_tokens])


def test_the_door_checks_the_weight() -> None:
    case = make_case(n_tokens=3).to(DEVICE)
    weight = weight_of(case)
    normed = add_steer_rms_norm(*case[:2], weight, EPS, *case[2:])
    torch.testing.assert_close(normed, unfused(case, gemma=False))
    for bad in (weight[:-1], weight.bfloat16()):
        with pytest.raises(ValueError, match="weight: expected"):
            add_steer_rms_norm(*case[:2], bad, EPS, *case[2:])
