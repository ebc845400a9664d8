"""steer_ on a CPU against its specification, and the properties it promises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from saif_kernels import LatentEdits, RequestRows, SteeringBank, steer_
from saif_kernels._steer_cpu import steer_cpu_

sys.path.insert(0, str(Path(__file__).parent))
from steering_cases import EDITS, Case, in_float64, make_case, near_threshold, random_edits

# Largest error over the largest value, and how near to a threshold rounding may decide.
TOLERANCE = {
    torch.float64: (1e-6, 1e-9),  # strengths and scales are fp32
    torch.float32: (2e-6, 1e-5),  # fp32 sums of up to 64 terms
    torch.bfloat16: (4e-3, 1e-2),  # one rounding to 8 bits at the store: 2**-8
    torch.float16: (6e-4, 2e-3),  # one rounding to 11 bits at the store: 2**-11
}


def check(case: Case) -> None:
    tolerance, epsilon = TOLERANCE[case.hidden.dtype]
    expected = case.hidden.double() + in_float64(case)
    hidden = case.hidden.clone()
    steer_(hidden, *case[1:])
    clear = ~near_threshold(case, epsilon)
    assert clear.float().mean() > 0.5, "too many tokens lie at a threshold for a test"
    error = (hidden.double() - expected)[clear].abs().max()
    assert error <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
def test_equals_the_specification_in_every_dtype(dtype: torch.dtype, with_residual: bool) -> None:
    check(make_case(n_tokens=63, dtype=dtype, with_residual=with_residual))


@pytest.mark.parametrize("n_tokens", [1, 7, 130])
@pytest.mark.parametrize("d_model", [1, 64, 300])
@pytest.mark.parametrize("latents", [(0,), (1,), (64,), (0, 3, 15)], ids=str)
def test_equals_the_specification_at_awkward_sizes(
    n_tokens: int, d_model: int, latents: tuple[int, ...]
) -> None:
    dtype = torch.float64  # so that a threshold is practically never near
    check(make_case(n_tokens=n_tokens, d_model=d_model, latents=latents, dtype=dtype))


@pytest.mark.parametrize("kind", EDITS)
def test_every_edit_alone(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    case = make_case(n_tokens=40, latents=(5,), dtype=torch.float64)
    case.bank.write_set(0, 0, random_edits(64, [kind] * 5, generator))
    check(case)


def test_a_linear_probe_projects_onto_the_given_value() -> None:
    unit = torch.nn.functional.normalize(torch.randn(16, dtype=torch.float64), dim=0)
    bank = SteeringBank.allocate(16, 1, 1, torch.float64, "cpu")
    probe = LatentEdits.empty(16)._replace(
        W_enc=unit[None],
        W_dec=unit[None],
        b_enc=torch.zeros(1),
        threshold=torch.tensor([-torch.inf]),
        p=torch.tensor([3.0]),
        q=torch.tensor([-1.0]),
        lo=torch.tensor([-torch.inf]),
        gated=torch.tensor([False]),
    )
    bank.write_set(0, 0, probe)
    rows = RequestRows.allocate(1, 1, "cpu")
    rows.write_row(0, [(0, 1.0)], prompt_len=1)
    hidden = torch.randn(5, 16, dtype=torch.float64)
    steer_(hidden, None, bank, rows, torch.zeros(5, dtype=torch.int32), torch.ones(5))
    torch.testing.assert_close(hidden @ unit, torch.full((5,), 3.0, dtype=torch.float64))


def test_untouched_tokens_keep_their_bits_even_nan() -> None:
    case = make_case(n_tokens=50)
    idle = (case.token_row < 0) | (case.token_scale == 0)
    assert 0 < idle.sum() < 50
    case.hidden[idle] = torch.nan
    hidden = case.hidden.clone()
    steer_(hidden, *case[1:])
    assert torch.equal(hidden[idle].view(torch.int32), case.hidden[idle].view(torch.int32))
    assert torch.isfinite(hidden[~idle]).all()


def test_tokens_do_not_depend_on_their_neighbours() -> None:
    case = make_case(n_tokens=33)
    together = case.hidden.clone()
    steer_(together, *case[1:])
    for t in range(33):
        assert case.residual is not None
        alone = case.hidden[t : t + 1].clone()
        residual = case.residual[t : t + 1]
        token = slice(t, t + 1)
        steer_(
            alone, residual, case.bank, case.rows, case.token_row[token], case.token_scale[token]
        )
        torch.testing.assert_close(alone[0], together[t], rtol=1e-6, atol=1e-6)


def test_the_order_of_sets_does_not_matter() -> None:
    case = make_case(n_tokens=20, dtype=torch.float64)
    flipped = RequestRows(case.rows.table.clone())
    flipped.set_slot.copy_(case.rows.set_slot.flip(1))
    flipped.strength.copy_(case.rows.strength.flip(1))
    first, second = case.hidden.clone(), case.hidden.clone()
    steer_(first, *case[1:])
    steer_(second, case.residual, case.bank, flipped, case.token_row, case.token_scale)
    torch.testing.assert_close(first, second)


def test_a_cleared_slot_steers_nothing() -> None:
    case = make_case(n_tokens=20)
    for slot in range(3):
        case.bank.clear_slot(slot)
    hidden = case.hidden.clone()
    steer_(hidden, *case[1:])
    assert torch.equal(hidden, case.hidden)


def test_the_registered_op_is_that_of_cpus() -> None:
    case = make_case(n_tokens=9)
    first, second = case.hidden.clone(), case.hidden.clone()
    steer_(first, *case[1:])
    steer_cpu_(second, *case.flat()[1:])
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(9, 65)}, "hidden: expected"),
        ({"residual": torch.zeros(8, 64)}, "residual: expected"),
        ({"residual": torch.zeros(9, 64, dtype=torch.bfloat16)}, "residual: expected"),
        ({"hidden": torch.zeros(64, 9).T, "residual": None}, "channels next to one another"),
        ({"hidden": torch.zeros(9, 64).bfloat16(), "residual": None}, "hidden: expected the bank"),
        ({"token_row": torch.zeros(8, dtype=torch.int32)}, "token_row: expected at least"),
        ({"token_row": torch.zeros(18, dtype=torch.int32)[::2]}, "token_row: expected at least"),
        ({"token_scale": torch.ones(9).double()}, "token_scale: expected at least"),
        ({"residual": torch.zeros(9)}, "residual: expected"),
    ],
    ids=[
        "d_model",
        "residual-shape",
        "residual-dtype",
        "strides",
        "dtype",
        "too-few-rows",
        "row-strides",
        "scale-dtype",
        "residual-1d",
    ],
)
def test_misfits_are_refused_before_anything_is_written(
    change: dict[str, torch.Tensor], message: str
) -> None:
    case = make_case(n_tokens=9)._replace(**change)
    before = case.hidden.clone()
    with pytest.raises(ValueError, match=message):
        steer_(*case)
    assert torch.equal(case.hidden, before)
