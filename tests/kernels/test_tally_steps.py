"""tally_steps_ against its sentences, token by token; then whole steps, as an engine makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from op_inputs import DEVICE
from prepare_steps_inputs import Span, make_steps
from steering_cases import make_case
from tally_steps_inputs import random_tally, tally_arguments
from torch import Tensor

from saif_kernels import (
    DOSE_PARTS,
    RequestRows,
    Tally,
    Window,
    prepare_steps_,
    steer_,
    tally_steps_,
)
from saif_kernels.tally_steps import tally_steps_torch_, tally_steps_triton_

PLANNED, STEERED, SHORTENED = Tally.PLANNED, Tally.STEERED, Tally.SHORTENED
NONFINITE, HIGHEST_POSITION = Tally.NONFINITE, Tally.HIGHEST_POSITION
TOLERANCE = 1e-6  # of a sum of doses: fp32 sums of up to 60 terms, in any order

either = pytest.mark.parametrize(
    "op", [tally_steps_torch_, tally_steps_triton_], ids=["reference", "kernel"]
)
Op = Callable[..., None]


def copy_of(tally: Tally) -> Tally:
    tables = (tally.table, tally.token_fresh, tally.dose, tally.missed)
    return Tally(*(table.clone() for table in tables))


def expected(token_row: Tensor, tally: Tally) -> Tally:
    """What a step makes of a tally, as the docstring says it."""
    after = copy_of(tally)
    doses = torch.stack([after.dose_sum, after.dose_max]).double().tolist()
    for t, row in enumerate(token_row.tolist()):
        entries = tally.dose[:, t].double().tolist()
        after.dose[:, t] = -1
        if row < 0:
            continue
        missed = any(parts[0][0] == -1 for parts in entries)
        nonfinite = not missed and any(math.inf in part for parts in entries for part in parts)
        position = int(tally.token_fresh[t])
        after.missed += missed
        after.counts[row, NONFINITE] += nonfinite
        if position < 0:
            continue
        after.counts[row, PLANNED] += 1
        highest = int(after.counts[row, HIGHEST_POSITION])
        after.counts[row, HIGHEST_POSITION] = max(highest, position)
        if missed or nonfinite:
            continue
        written = [[part for part in parts if part[0] != -1] for parts in entries]
        after.counts[row, STEERED] += 1
        after.counts[row, SHORTENED] += any(part[1] < 0 for parts in written for part in parts)
        for layer, parts in enumerate(written):
            change2, x2 = (sum(abs(part[i]) for part in parts) for i in (0, 1))
            dose = 0.0 if change2 == 0 else math.sqrt(change2 / x2)
            doses[0][row][layer] += dose
            doses[1][row][layer] = max(doses[1][row][layer], dose)
    after.dose_sum.copy_(torch.tensor(doses[0]))
    after.dose_max.copy_(torch.tensor(doses[1]))
    return after


def check(op: Op, token_row: Tensor, tally: Tally) -> None:
    """Counts, positions, misses and the reset exactly; doses within the tolerance."""
    truth = expected(token_row, tally)
    op(token_row, *tally_arguments(tally))
    for name in ("counts", "missed", "dose", "token_fresh"):
        assert torch.equal(getattr(tally, name), getattr(truth, name)), name
    for name in ("dose_sum", "dose_max"):
        doses = getattr(tally, name), getattr(truth, name)
        torch.testing.assert_close(*doses, rtol=TOLERANCE, atol=0.0)


@either
@pytest.mark.parametrize("n_layers", [1, 3, 8])
@pytest.mark.parametrize(
    ("n_tokens", "n_requests"), [(1, 1), (7, 3), (63, 1), (130, 20)], ids=lambda n: str(n)
)
def test_any_step(op: Op, n_tokens: int, n_requests: int, n_layers: int) -> None:
    check(op, *random_tally(n_tokens, n_layers, n_requests, DEVICE))


@either
def test_an_empty_batch_counts_nothing(op: Op) -> None:
    token_row, tally = random_tally(device=DEVICE)
    check(op, token_row[:0], tally)


@either
def test_a_step_of_fewer_tokens_leaves_the_others(op: Op) -> None:
    token_row, tally = random_tally(device=DEVICE)
    check(op, token_row[:11], tally)


def one_token(dose: Sequence[Sequence[float]]) -> Tally:
    """A tally of one row and two layers; a fresh token's dose in part 0 of each."""
    tally = Tally.allocate(2, 1, 1, DEVICE)
    tally.token_fresh.zero_()
    tally.dose[:, 0, 0] = torch.tensor(dose)
    return tally


def counts_of(tally: Tally, row: int = 0) -> list[int]:
    """Tokens planned and steered, and the highest position, of a row without other tokens."""
    assert tally.counts[row, [SHORTENED, NONFINITE]].tolist() == [0, 0]
    counts: list[int] = tally.counts[row, [PLANNED, STEERED, HIGHEST_POSITION]].tolist()
    return counts


@either
def test_a_change_of_zero_has_dose_zero(op: Op) -> None:
    tally = one_token([(0.0, 0.0), (4.0, 1.0)])
    op(torch.zeros(1, dtype=torch.int32, device=DEVICE), *tally_arguments(tally))
    assert tally.dose_sum.tolist() == tally.dose_max.tolist() == [[0.0, 2.0]]
    assert counts_of(tally) == [1, 1, 0] and tally.missed.item() == 0


@either
@pytest.mark.parametrize(
    "dose",
    [(math.inf, math.inf), (math.nan, math.nan), (4.0, 0.0)],
    ids=["inf", "nan", "no-stream"],
)
def test_what_is_not_finite_is_counted_apart_and_adds_to_no_dose(
    op: Op, dose: tuple[float, float]
) -> None:
    tally = one_token([dose, (1.0, 4.0)])
    for fresh in (0, -1):  # whether or not its position was counted before
        tally.token_fresh.fill_(fresh)
        tally.dose[:, 0, 0] = torch.tensor([dose, (1.0, 4.0)])
        op(torch.zeros(1, dtype=torch.int32, device=DEVICE), *tally_arguments(tally))
    counts = tally.counts[0]
    assert counts[[PLANNED, STEERED, SHORTENED, NONFINITE]].tolist() == [1, 0, 0, 2]
    assert counts[HIGHEST_POSITION] == 0
    assert tally.missed.item() == 0
    assert not tally.dose_sum.any() and not tally.dose_max.any()


@either
def test_a_shortened_change_is_counted_and_its_dose_is_that_of_what_is_left(op: Op) -> None:
    tally = one_token([(1.0, -4.0), (1.0, 4.0)])
    op(torch.zeros(1, dtype=torch.int32, device=DEVICE), *tally_arguments(tally))
    assert tally.counts[0, [PLANNED, STEERED, SHORTENED, NONFINITE]].tolist() == [1, 1, 1, 0]
    assert tally.dose_sum.tolist() == [[0.5, 0.5]]


class Engine:
    """Steps of requests through all three ops, over ``n_layers`` hooked layers."""

    def __init__(self, n_requests: int = 3, n_layers: int = 2, prompt_len: int = 4) -> None:
        self.layers = [
            make_case(n_tokens=1, n_requests=n_requests, seed=layer).to(DEVICE)
            for layer in range(n_layers)
        ]
        self.rows = RequestRows.allocate(n_requests, 3, DEVICE)
        for row in range(n_requests):
            self.rows.write_row(row, [(0, 0.5), (1, 1.0)], prompt_len)
        self.tally = Tally.allocate(n_layers, 64, n_requests, DEVICE)
        self.doses: list[Tensor] = []  # [L, T] of each step, from the changes themselves

    def step(self, *spans: Span, n_padding: int = 0, without: Sequence[int] = ()) -> None:
        """One forward; the layers of ``without`` do not steer it."""
        steps = make_steps(spans, self.rows, n_padding=n_padding)
        n_tokens, tally = len(steps.token_row), self.tally
        prepare_steps_(
            *steps[:5],
            self.rows,
            token_fresh=tally.token_fresh[:n_tokens],
            counts=tally.counts,
        )
        generator = torch.Generator().manual_seed(len(self.doses))
        doses = []
        for layer, case in enumerate(self.layers):
            hidden = torch.randn(n_tokens, 64, generator=generator).to(DEVICE)
            before = hidden.double()
            if layer not in without:
                tables = (case.bank, self.rows, steps.token_row, steps.token_scale)
                steer_(hidden, None, *tables, dose=tally.dose[layer])
            doses.append((hidden.double() - before).norm(dim=1) / before.norm(dim=1))
        self.doses.append(torch.stack(doses))
        tally_steps_(steps.token_row, tally)
        assert (tally.dose == -1).all()


def test_prefill_and_decode_of_several_requests() -> None:
    engine = Engine()
    engine.step(Span(1, 0, 4), Span(-1, 0, 2), Span(0, 0, 3), n_padding=2)
    engine.step(Span(0, 3, 1), Span(1, 4, 1), Span(-1, 2, 1), n_padding=1)
    engine.step(Span(1, 5, 1))
    tally = engine.tally
    # Of the prompt its last token is steered.
    assert [counts_of(tally, row) for row in range(3)] == [[1, 1, 3], [3, 3, 5], [0, 0, -1]]
    assert tally.missed.item() == 0
    first, second, third = engine.doses
    of_request_1 = torch.stack([first[:, 3], second[:, 1], third[:, 0]])
    close = {"rtol": 1e-4, "atol": 0.0, "check_dtype": False}
    torch.testing.assert_close(tally.dose_sum[1], of_request_1.sum(0), **close)
    torch.testing.assert_close(tally.dose_max[1], of_request_1.amax(0), **close)
    torch.testing.assert_close(tally.dose_sum[0], second[:, 0], **close)


def test_recomputed_positions_count_once() -> None:
    engine = Engine()
    engine.step(Span(0, 3, 1))
    engine.step(Span(0, 4, 1))
    engine.step(Span(0, 0, 5))  # preempted: all that was computed comes again
    engine.step(Span(0, 0, 3))  # ... and in chunks, the second beyond what was counted
    engine.step(Span(0, 3, 4))
    assert counts_of(engine.tally) == [4, 4, 6]
    torch.testing.assert_close(
        engine.tally.dose_sum[0],
        (engine.doses[0] + engine.doses[1]).sum(1).float() + engine.doses[4][:, 2:].sum(1).float(),
        rtol=1e-4,
        atol=0.0,
    )


def test_rejected_drafts_count_once() -> None:
    engine = Engine()
    engine.step(Span(0, 3, 4))  # one token and three drafts, of which two are rejected
    engine.step(Span(0, 5, 4))
    assert counts_of(engine.tally) == [6, 6, 8]
    assert engine.tally.missed.item() == 0


def test_a_layer_that_missed_a_token_is_seen() -> None:
    engine = Engine()
    engine.step(Span(0, 3, 1), Span(1, 3, 2))
    engine.step(Span(0, 4, 1), Span(1, 5, 2), without=[1])
    assert engine.tally.missed.item() == 3
    rows = [counts_of(engine.tally, row) for row in range(3)]
    assert rows == [[2, 1, 4], [4, 2, 6], [0, 0, -1]]
    engine.step(Span(0, 3, 2), without=[0])  # not fresh, and missed nevertheless
    assert engine.tally.missed.item() == 5
    assert counts_of(engine.tally) == [2, 1, 4]


def test_a_cleared_row_begins_anew_and_leaves_the_others() -> None:
    engine = Engine()
    engine.step(Span(0, 3, 1), Span(1, 3, 1))
    other = engine.tally.table[1].clone()
    engine.tally.clear_row(0)
    assert counts_of(engine.tally) == [0, 0, -1]
    assert not engine.tally.dose_sum[0].any() and not engine.tally.dose_max[0].any()
    assert torch.equal(engine.tally.table[1], other)
    engine.step(Span(0, 3, 1))
    assert counts_of(engine.tally) == [1, 1, 3]


def test_pointers_never_change() -> None:
    engine = Engine()
    tally = engine.tally
    names = ("table", "token_fresh", "dose", "missed", "counts", "dose_sum", "dose_max")
    pointers = [getattr(tally, name).data_ptr() for name in names]
    engine.step(Span(0, 3, 2))
    tally.clear_row(0)
    assert [getattr(tally, name).data_ptr() for name in names] == pointers
    assert (tally.counts[:, HIGHEST_POSITION] == -1).all()
    assert tuple(tally.tensors()) == names[:4]
    assert tally.dose.shape == (2, 64, DOSE_PARTS, 2)


@pytest.mark.parametrize(
    "token_row",
    [
        torch.zeros(65, dtype=torch.int32),
        torch.zeros(8, dtype=torch.int64),
        torch.zeros(16, dtype=torch.int32)[::2],
        torch.zeros(4, 2, dtype=torch.int32),
    ],
    ids=["too-many", "dtype", "strides", "2d"],
)
def test_misfits_are_refused_before_anything_is_written(token_row: Tensor) -> None:
    tally = Tally.allocate(1, 64, 1, DEVICE)
    with pytest.raises(ValueError, match="token_row: expected at most"):
        tally_steps_(token_row.to(DEVICE), tally)
    assert counts_of(tally) == [0, 0, -1]


def test_a_prompt_that_is_steered_whole_counts_its_tokens() -> None:
    engine = Engine()
    engine.rows.write_row(0, [(0, 1.0)], 4, Window(prompt=True))
    engine.step(Span(0, 0, 4))
    assert counts_of(engine.tally) == [4, 4, 3]
