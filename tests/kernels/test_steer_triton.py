"""steer_'s kernels against its specification, and their promises: on a GPU, or interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_inputs import DEVICE
from steering_cases import (
    EDITS,
    FEW,
    MANY,
    NEAR,
    Case,
    in_float64,
    laid_out,
    make_case,
    near_threshold,
    pairwise_by_regime,
    random_edits,
)

import saif_kernels.steer as steer
from saif_kernels import LatentEdits, RequestRows, SteeringBank
from saif_kernels.bank import LATENT_FIELDS

# Largest error and root of the mean squared one, over the largest expected value.
TOLERANCE = {
    torch.float32: (3e-6, 3e-7),  # fp32 sums over 2304 channels and 192 latents
    torch.bfloat16: (2**-8, 2**-10),  # one rounding at the store to 8 bits
    torch.float16: (2**-11, 2**-13),  # one rounding at the store to 11 bits
}

# More than few tokens, and a last tile that is not full. No block depends on which of these it is,
# and the interpreter needs up to 0.3 s per token.
LONG = 1023 if DEVICE == "cuda" else 255
FACTORS = {
    "dtype": list(TOLERANCE),
    "d_model": [64, 300, 2304],
    "n_tokens": [1, 7, 63, LONG],
    "n_live": [0, 1, 15, 64],
    "max_pairs": [1, 3],
    "one_combination": [True, False],
    "layout": ["contiguous", "strided", "padded"],
    "with_residual": [True, False],
}


def run(case: Case, layout: str = "contiguous") -> torch.Tensor:
    hidden = laid_out(case.hidden, layout)
    residual = None if case.residual is None else laid_out(case.residual, layout)
    base = hidden if hidden._base is None else hidden._base
    n_nan = base.isnan().sum()
    steer.steer_triton_(hidden, residual, *case.flat()[2:])
    assert base.isnan().sum() == n_nan
    return hidden


def check(case: Case, layout: str = "contiguous") -> int:
    """Compare; returns the number of tokens left out."""
    result, near = run(case, layout), near_threshold(case)
    truth = case.hidden.double() + in_float64(case)
    idle = (case.token_row < 0) | (case.token_scale == 0)
    assert torch.equal(result[idle], case.hidden[idle])
    error = (result.double() - truth)[~near] / truth.abs().max()
    largest, rms = TOLERANCE[case.hidden.dtype]
    assert error.abs().max() <= largest
    assert error.square().mean().sqrt() <= rms
    return int(near.sum())


@pytest.mark.parametrize(("factors", "regime"), pairwise_by_regime(FACTORS), indirect=["regime"])
def test_equals_float64(factors: dict[str, object], regime: None) -> None:
    factors = dict(factors)
    layout, n_live = factors.pop("layout"), factors.pop("n_live")
    latents = (n_live, n_live // 2, n_live)
    idle = 0.92 if factors["n_tokens"] == LONG and DEVICE == "cpu" else 0.2
    case = make_case(latents=latents, idle=idle, **factors).to(DEVICE)
    left_out = check(case, layout)
    print(f"{left_out} of {len(case.hidden)} tokens lie within {NEAR} of a threshold")
    assert left_out < 0.2 * len(case.hidden)


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_every_edit(kind: str, regime: None) -> None:
    generator = torch.Generator().manual_seed(1)
    case = make_case(n_tokens=40, latents=(5,), max_pairs=1)
    case.bank.write_set(0, 0, random_edits(64, [kind] * 5, generator))
    check(case.to(DEVICE))


@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_a_linear_probe_has_no_threshold(regime: None) -> None:
    case = make_case(n_tokens=20, latents=(3,), max_pairs=1)
    case.bank.threshold.fill_(-torch.inf)
    check(case.to(DEVICE))


@pytest.mark.parametrize("d_model", [5120, 8192])
def test_wide_rows_are_split_among_programs(d_model: int) -> None:
    case = make_case(n_tokens=3, d_model=d_model, latents=(9, 64), dtype=torch.bfloat16)
    assert steer.steer_blocks(3, d_model, 2).n_parts > 1
    check(case.to(DEVICE))


@pytest.mark.parametrize("n_tokens", [1, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
def test_a_broken_token_breaks_no_other(n_tokens: int, value: float, regime: None) -> None:
    case = make_case(n_tokens=n_tokens + 1, one_combination=True).to(DEVICE)
    case.token_row.fill_(1)
    case.token_scale.fill_(0.5)
    whole = run(case)
    case.hidden[n_tokens // 2] = value
    broken = run(case)
    others = torch.arange(n_tokens + 1) != n_tokens // 2
    torch.testing.assert_close(broken[others], whole[others], rtol=0, atol=0)


def test_edits_beyond_fp16_reach_the_store_unbroken() -> None:
    # 70,000 units of a latent whose row is 1e-3: the product is small, the factor is not.
    case = make_case(n_tokens=70, latents=(1,), max_pairs=1, dtype=torch.float16)
    case.bank.write_set(0, 0, random_edits(64, ["clamp"], torch.Generator().manual_seed(2)))
    case.bank.p.fill_(70_000.0)
    case.bank.W_dec.mul_(1e-3)
    case.rows.strength.fill_(1.0)
    check(case.to(DEVICE))


def test_no_tokens() -> None:
    case = make_case(n_tokens=1).to(DEVICE)
    hidden = case.hidden[:0]
    steer.steer_triton_(hidden, case.residual[:0], *case.flat()[2:])


cases = st.builds(
    make_case,
    n_tokens=st.integers(1, 40),
    d_model=st.sampled_from([16, 40]),
    latents=st.sampled_from([(0, 1, 5), (3, 2, 17), (7,)]),
    max_pairs=st.integers(1, 3),
    one_combination=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
quick = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # regime: one for all examples
)


@pytest.mark.parametrize("regime", [FEW, MANY], indirect=True)
class TestProperties:
    def same(self, first: torch.Tensor, second: torch.Tensor) -> None:
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)

    @quick
    @given(case=cases, seed=st.integers(0, 99))
    def test_the_order_of_latents_and_sets_is_irrelevant(
        self, regime: None, case: Case, seed: int
    ) -> None:
        case = case.to(DEVICE)
        generator = torch.Generator().manual_seed(seed)
        before = run(case)
        shuffled = SteeringBank(*(table.clone() for table in case.bank))
        for slot in range(len(shuffled.offset)):
            first, k = int(shuffled.offset[slot]), int(shuffled.n_latents[slot])
            order = first + torch.randperm(k, generator=generator).to(DEVICE)
            for name in LATENT_FIELDS:
                table = getattr(shuffled, name)
                table[first : first + k] = table[order]
        rows = RequestRows(case.rows.table.clone())
        pairs = torch.randperm(rows.set_slot.shape[1], generator=generator).to(DEVICE)
        rows.set_slot.copy_(rows.set_slot[:, pairs])
        rows.strength.copy_(rows.strength[:, pairs])
        self.same(run(case._replace(bank=shuffled, rows=rows)), before)

    @quick
    @given(case=cases)
    def test_row_minus_one_and_scale_zero_leave_the_bits(self, regime: None, case: Case) -> None:
        case = case.to(DEVICE)
        case.hidden[0] = torch.nan
        for idle in (
            case._replace(token_row=torch.full_like(case.token_row, -1)),
            case._replace(token_scale=torch.zeros_like(case.token_scale)),
        ):
            result = run(idle)
            assert torch.equal(result.view(torch.int32), case.hidden.view(torch.int32))

    @quick
    @given(case=cases)
    def test_tokens_are_independent_of_their_neighbours(self, regime: None, case: Case) -> None:
        case = case.to(DEVICE)
        together = run(case)
        for t in range(0, len(case.hidden), 7):
            one = slice(t, t + 1)
            alone = case._replace(
                hidden=case.hidden[one],
                residual=None if case.residual is None else case.residual[one],
                token_row=case.token_row[one],
                token_scale=case.token_scale[one],
            )
            self.same(run(alone)[0], together[t])

    @quick
    @given(case=cases)
    def test_folding_is_not_folding(self, regime: None, case: Case) -> None:
        # "add c" as a live latent, and as c * W_dec in the set's vector.
        generator = torch.Generator().manual_seed(3)
        d_model = case.hidden.shape[1]
        live = random_edits(d_model, ["add"] * 4, generator)
        folded = LatentEdits.empty(d_model)._replace(vector=live.vector + live.p @ live.W_dec)
        results = []
        for edits in (live, folded):
            bank = SteeringBank.allocate(d_model, len(case.bank.offset), 4, torch.float32, "cpu")
            bank.write_set(0, 0, edits)
            results.append(run(case._replace(bank=bank).to(DEVICE)))
        self.same(*results)


@quick
@given(case=cases)
def test_both_regimes_agree(case: Case) -> None:
    case = case.to(DEVICE)
    results = []
    for few in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steer, "FEW_TOKENS", few)
            results.append(run(case))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
