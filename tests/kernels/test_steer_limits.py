"""No change leaves a residual stream that is not finite, or that later layers cannot add to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from op_inputs import DEVICE
from pairwise import pairwise
from steering_cases import OPS, Case, make_case, n_parts
from torch import Tensor

import saif_kernels.steer as steer
from saif_kernels import DOSE_PARTS, largest_norm

# Tokens, channels, whether a tile's tokens share their sets, tokens that are few.
REGIMES = {
    "tokens": (7, 64, False, 10**6),
    "split": (5, 8192, False, 10**6),
    "tiles": (40, 64, True, 0),
    "mixed-tiles": (40, 300, False, 0),
}
# The specification has one path. The CPU's op depends on whether sets are shared, and writes the
# dose in as many parts as the kernel; only the kernel knows few tokens.
PATHS = [
    ("specification", "tokens"),
    *(("cpu", regime) for regime in REGIMES if regime != "tokens"),
    *(("kernel", regime) for regime in REGIMES),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BROKEN = (torch.inf, torch.nan)


def paths(**factors: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize op, regime and ``factors``: every path with every value, every pair of values."""
    cases = [(*case.pop("path"), *case.values()) for case in pairwise({"path": PATHS, **factors})]
    ids = ["-".join(str(value).removeprefix("torch.") for value in case) for case in cases]
    return pytest.mark.parametrize(("op", "regime", *factors), cases, ids=ids)


@pytest.fixture
def make(regime: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Case:
    n_tokens, d_model, shared, few = REGIMES[regime]
    monkeypatch.setattr(steer, "FEW_TOKENS", few)
    case = make_case(
        n_tokens=n_tokens,
        d_model=d_model,
        latents=(0, 15, 7),
        dtype=dtype,
        one_combination=shared,
        idle=0.0,
        seed=3,
    )
    case.token_row[:4] = torch.tensor([0, 1, 2, 3])  # steered ones at least
    case.token_scale.clamp_(min=0.1)
    return case.to(DEVICE)


def run(op: str, case: Case, max_dose: float | None = None) -> tuple[Tensor, Tensor]:
    """Hidden and dose, in fp64."""
    hidden = case.hidden.clone()
    dose = torch.full((len(hidden), DOSE_PARTS, 2), -1.0, device=DEVICE)
    OPS[op](hidden, *case.flat()[1:], dose=dose, max_dose=max_dose)
    return hidden, dose[:, : n_parts(OPS[op], hidden)].double()


def stream(hidden: Tensor, case: Case) -> Tensor:
    return hidden.double() + (0 if case.residual is None else case.residual.double())


@paths(dtype=DTYPES)
def test_the_stream_stays_shorter_than_its_dtype_has_room_for(
    op: str, regime: str, dtype: torch.dtype, make: Case
) -> None:
    # Of most tokens the change goes far beyond, of strength 0 nothing changes.
    make.rows.strength.mul_(1e7 if dtype == torch.float16 else 1e15)
    make.rows.strength[3] = 0.0
    hidden, dose = run(op, make)
    norms = stream(hidden, make).norm(dim=1)
    assert (norms <= largest_norm(dtype) * 1.01).all()
    live = make.token_row >= 0
    beyond = live & (make.token_row != 3)
    assert (norms[beyond] > 0.5 * largest_norm(dtype)).all()
    assert torch.equal((dose[..., 1] < 0).all(1), (dose[..., 1] < 0).any(1))
    assert torch.equal((dose[..., 1] < 0).all(1) & live, beyond)


@paths(dtype=DTYPES, broken=BROKEN)
def test_a_token_that_is_not_finite_keeps_its_bits_and_changes_no_other(
    op: str, regime: str, dtype: torch.dtype, broken: float, make: Case
) -> None:
    expected, sound_dose = run(op, make, max_dose=0.5)
    make.hidden[2, 5] = broken
    hidden, dose = run(op, make, max_dose=0.5)
    torch.testing.assert_close(hidden[2], make.hidden[2], rtol=0, atol=0, equal_nan=True)
    assert dose[2].isinf().all()
    others = torch.arange(len(hidden), device=DEVICE) != 2
    torch.testing.assert_close(hidden[others], expected[others], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(dose[others], sound_dose[others], rtol=1e-2, atol=1e-3)


@paths(dtype=DTYPES[:2], fault=list(product(BROKEN, ("none", "ablate"))))
def test_a_stream_that_is_not_finite_is_seen_where_a_set_changes_nothing(
    op: str, regime: str, dtype: torch.dtype, fault: tuple[float, str], make: Case
) -> None:
    broken, change = fault
    # As at a layer that a request's set leaves alone, above one that it edits.
    make.bank.vector.zero_()
    make.bank.vector_norm.zero_()
    make.bank.p.zero_()
    make.bank.q.fill_(-1.0 if change == "ablate" else 0.0)
    make.bank.lo.fill_(-torch.inf)
    if change == "none":
        make.bank.n_latents.zero_()
    make.hidden[2, 5] = broken
    _, dose = run(op, make, max_dose=64.0)
    assert dose[2].isinf().all()


@paths(dtype=DTYPES[:2])
def test_a_change_that_overflows_is_not_made(
    op: str, regime: str, dtype: torch.dtype, make: Case
) -> None:
    make.bank.vector[:] = 1e30
    make.bank.vector_norm[:] = 1e30 * make.hidden.shape[1] ** 0.5
    hidden, dose = run(op, make, max_dose=64.0)
    assert torch.equal(hidden, make.hidden)
    assert dose[make.token_row >= 0].isinf().all()


@paths(dtype=[torch.float16])
def test_what_is_stored_is_finite_where_the_stream_is(
    op: str, regime: str, dtype: torch.dtype, make: Case
) -> None:
    # hidden and residual nearly cancel: the stream has room, its two halves have none.
    assert make.residual is not None
    make.residual[:, 0], make.hidden[:, 0] = 60000.0, -59000.0
    make.bank.vector.zero_()
    make.bank.vector[:, 0], make.bank.vector_norm[:] = -20000.0, 20000.0
    make.rows.strength.fill_(1.0)
    hidden, _ = run(op, make)
    assert hidden.isfinite().all()
    assert (hidden[make.token_row >= 0, 0] < -59000.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bank_knows_the_lengths_of_its_rows(dtype: torch.dtype) -> None:
    bank = make_case(n_tokens=1, dtype=dtype).bank
    torch.testing.assert_close(bank.W_dec_norm, bank.W_dec.float().norm(dim=1))
    torch.testing.assert_close(bank.vector_norm, bank.vector.float().norm(dim=1))
    bank.clear_slot(0)
    assert bank.vector_norm[0] == 0
