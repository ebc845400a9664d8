"""The dose that steer_ writes: right in every part, for steered tokens, and for no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_inputs import DEVICE
from steering_cases import (
    FEW,
    MANY,
    OPS,
    Case,
    in_float64,
    laid_out,
    make_case,
    n_parts,
    near_threshold,
    pairwise_by_regime,
)
from torch import Tensor

import saif_kernels.steer as steer
from saif_kernels import DOSE_PARTS, steer_

# Of a sum of squares, relative. The tiles' weights have 16 bits (22 in fp16).
TOLERANCE = {
    torch.float32: 3e-6,  # fp32 sums over up to 2304 channels and 192 latents
    torch.bfloat16: 2**-13,  # a product's two factors, squared
    torch.float16: 2**-13,  # residual and latents as in bf16
}
FACTORS = {
    "op": list(OPS),
    "dtype": list(TOLERANCE),
    "d_model": [64, 300],
    "n_tokens": [1, 7, 40],
    "n_live": [0, 1, 15, 64],
    "one_combination": [True, False],
    "layout": ["contiguous", "strided", "padded"],
    "with_residual": [True, False],
}


def run(
    op: Callable[..., None],
    case: Case,
    layout: str = "contiguous",
    empty: float = -1.0,
    max_dose: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden and dose as ``op`` leaves them; the dose has room for three tokens more."""
    hidden = laid_out(case.hidden, layout)
    residual = None if case.residual is None else laid_out(case.residual, layout)
    dose = torch.full((len(hidden) + 3, DOSE_PARTS, 2), empty, device=hidden.device)
    op(hidden, residual, *case.flat()[2:], dose=dose, max_dose=max_dose)
    return hidden, dose


def check(op: Callable[..., None], case: Case, layout: str = "contiguous") -> None:
    """Sums of each part against float64; -1 wherever nothing is to be written."""
    n_tokens, d_model = case.hidden.shape
    dose = run(op, case, layout)[1].double()
    parts = n_parts(op, case.hidden)
    steered = (case.token_row >= 0) & (case.token_scale != 0)
    assert steered.any()
    assert (dose[:n_tokens][~steered] == -1).all()
    assert (dose[n_tokens:] == -1).all() and (dose[:, parts:] == -1).all()
    change = in_float64(case)
    x = (case.hidden if case.residual is None else case.hidden + case.residual).double()
    clear = steered & ~near_threshold(case)
    for part, channels in enumerate(torch.arange(d_model).tensor_split(parts)):
        for i, values in enumerate((change, x)):
            truth = values[clear][:, channels].square().sum(1)
            error = (dose[:n_tokens][clear, part, i] - truth).abs()
            assert (error <= TOLERANCE[case.hidden.dtype] * truth).all()


@pytest.mark.parametrize(("factors", "regime"), pairwise_by_regime(FACTORS), indirect=["regime"])
def test_equals_float64(factors: dict[str, object], regime: None) -> None:
    factors = dict(factors)
    op, layout, n_live = (factors.pop(name) for name in ("op", "layout", "n_live"))
    case = make_case(latents=(n_live, n_live // 2, n_live), **factors)
    case.token_row[0], case.token_scale[0] = 1, 0.0  # one of each at least
    case.token_row[-1], case.token_scale[-1] = 1, 0.5
    check(OPS[op], case.to(DEVICE), layout)


@pytest.mark.parametrize("latents", [(5,), (15, 7, 15)], ids=["up-to-16", "up-to-64"])
@pytest.mark.parametrize("d_model", [300, 1024])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("regime", [MANY], indirect=True)
def test_a_tile_adds_up_over_its_steps(
    dtype: torch.dtype, d_model: int, latents: tuple[int, ...], regime: None
) -> None:
    shape = {"n_tokens": 20, "d_model": d_model, "max_pairs": len(latents)}
    case = make_case(latents=latents, dtype=dtype, one_combination=True, **shape)
    assert steer.steer_blocks(20, d_model, dtype.itemsize).tile_d < d_model
    check(OPS["kernel"], case.to(DEVICE))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("d_model", "dtype"), [(2304, torch.float32), (8192, torch.bfloat16)], ids=str
)
def test_each_part_of_wide_rows_has_its_sums(op: str, d_model: int, dtype: torch.dtype) -> None:
    case = make_case(n_tokens=5, d_model=d_model, latents=(0, 9), dtype=dtype, max_pairs=2)
    assert steer.steer_blocks(5, d_model, dtype.itemsize).n_parts == DOSE_PARTS
    check(OPS[op], case.to(DEVICE))


@pytest.mark.parametrize("n_latents", [0, 5])
@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_asking_for_the_dose_changes_no_bit_of_hidden(n_latents: int, regime: None) -> None:
    case = make_case(n_tokens=20, latents=(n_latents,) * 3, dtype=torch.bfloat16).to(DEVICE)
    hidden = case.hidden.clone()
    steer.steer_triton_(hidden, *case.flat()[1:])
    assert torch.equal(run(steer.steer_triton_, case)[0], hidden)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_a_set_that_changes_nothing_has_dose_zero(op: str, regime: None) -> None:
    case = make_case(n_tokens=20).to(DEVICE)
    for slot in range(len(case.bank.offset)):
        case.bank.clear_slot(slot)
    dose = run(OPS[op], case, empty=torch.nan)[1]
    steered = (case.token_row >= 0) & (case.token_scale != 0)
    assert (dose[:20][steered, 0, 0] == 0).all()
    assert (dose[:20][steered, 0, 1] > 0).all()


# By dtype, of |change|: as the tolerance of its square.
NO_MORE = {torch.float32: 1e-5, torch.bfloat16: 2**-13, torch.float16: 2**-13}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("n_tokens", "d_model", "one_combination", "regime"),
    [(7, 64, False, FEW), (5, 8192, False, FEW), (40, 64, True, MANY), (40, 300, False, MANY)],
    ids=["tokens", "split", "tiles", "mixed-tiles"],
    indirect=["regime"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_change_is_longer_than_the_cap(
    op: str,
    n_tokens: int,
    d_model: int,
    one_combination: bool,
    dtype: torch.dtype,
    regime: None,
) -> None:
    case = make_case(
        n_tokens=n_tokens,
        d_model=d_model,
        latents=(0, 15, 7),
        dtype=dtype,
        one_combination=one_combination,
        seed=2,
    ).to(DEVICE)
    change, near = in_float64(case), near_threshold(case)
    x = (case.hidden + case.residual).double()
    doses = change.norm(dim=1) / x.norm(dim=1)
    clear = (case.token_row >= 0) & (case.token_scale != 0) & ~near
    max_dose = 1.001 * doses[clear].median().item()  # of none itself: rounding would decide
    hidden, dose = run(OPS[op], case, max_dose=max_dose)
    factor = torch.where(doses > max_dose, max_dose / doses, 1.0)
    assert (factor[clear] < 1).any() and (factor[clear] == 1).any()
    truth = case.hidden.double() + factor[:, None] * change
    rounding = {torch.float32: 2**-20, torch.bfloat16: 2**-8}[dtype]  # at the store, mostly
    torch.testing.assert_close(
        hidden.double()[~near], truth[~near], rtol=rounding, atol=rounding * truth.abs().max()
    )
    sums = dose[:n_tokens, : n_parts(OPS[op], case.hidden)].double()
    assert torch.equal((sums[clear, :, 1] < 0).all(1), factor[clear] < 1)  # the mark
    change2, x2 = sums.abs().sum(1).unbind(1)
    written = (change2 / x2).sqrt()[clear]
    assert ((written - (factor * doses)[clear]).abs() <= NO_MORE[dtype] * max_dose).all()
    assert (dose[n_tokens:] == -1).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_a_cap_that_binds_nowhere_changes_no_bit(op: str, regime: None) -> None:
    case = make_case(n_tokens=20, dtype=torch.bfloat16).to(DEVICE)
    hidden, dose = run(OPS[op], case)
    capped = run(OPS[op], case, max_dose=1e6)
    assert torch.equal(capped[0], hidden)
    torch.testing.assert_close(capped[1], dose)
    without = case.hidden.clone()
    OPS[op](without, *case.flat()[1:], max_dose=1e6)
    assert torch.equal(without, hidden)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_where_the_stream_is_zero_the_cap_leaves_no_change(op: str, regime: None) -> None:
    case = make_case(n_tokens=20, with_residual=False).to(DEVICE)
    case.token_row[3], case.token_scale[3], case.hidden[3] = 1, 0.5, 0.0
    hidden, dose = run(OPS[op], case, max_dose=0.1)
    assert not hidden[3].any() and dose[3, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("max_dose", [0.0, -1.0, float("nan")])
def test_a_cap_that_is_none_is_refused(max_dose: float) -> None:
    case = make_case(n_tokens=9).to(DEVICE)
    with pytest.raises(ValueError, match="max_dose: expected a number above 0"):
        steer_(*case, max_dose=max_dose)


def test_the_registered_op_runs_behind_the_door_and_passes_opcheck() -> None:
    case = make_case(n_tokens=9).to(DEVICE)
    dose = torch.full((9, DOSE_PARTS, 2), -1.0, device=DEVICE)
    expected = run(OPS["kernel" if DEVICE == "cuda" else "cpu"], case)
    hidden = case.hidden.clone()
    steer_(hidden, *case[1:], dose=dose)
    assert torch.equal(hidden, expected[0])
    assert torch.equal(dose, expected[1][:9])
    torch.library.opcheck(torch.ops.saif.steer_.default, case.flat(), {"dose": dose})
    limits = {"dose": dose, "max_dose": 0.5}
    torch.library.opcheck(torch.ops.saif.steer_.default, case.flat(), limits)


@pytest.mark.parametrize(
    "dose",
    [
        torch.zeros(8, DOSE_PARTS, 2),
        torch.zeros(9, 1, 2),
        torch.zeros(9, DOSE_PARTS, 2).half(),
        torch.zeros(9, 2, DOSE_PARTS).mT,
    ],
    ids=["too-few-tokens", "parts", "dtype", "strides"],
)
def test_misfits_are_refused_before_anything_is_written(dose: Tensor) -> None:
    case = make_case(n_tokens=9).to(DEVICE)
    before = case.hidden.clone()
    with pytest.raises(ValueError, match="dose: expected at least"):
        steer_(*case, dose=dose.to(DEVICE))
    assert torch.equal(case.hidden, before)
