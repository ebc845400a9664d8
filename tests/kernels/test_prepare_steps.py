"""prepare_steps_ against the sentence that defines a window, token by token."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saif_kernels import OPEN_STOP, RequestRows, Tally, Window, prepare_steps_
from saif_kernels.prepare_steps import prepare_steps_torch_, prepare_steps_triton_

sys.path.insert(0, str(Path(__file__).parent))
from op_inputs import DEVICE
from prepare_steps_inputs import Span, make_steps, random_steps

WINDOWS = {
    "generated": Window(),
    "all": Window(prompt=True),
    "prompt": Window(prompt=True, start=0, stop=1),
    "start": Window(start=2),
    "stop": Window(stop=3),
    "decay": Window(start=1, stop=9, omega=0.5, power=2.0),
}
PROMPT_LEN = 5

Prepare = Callable[..., None]
either = pytest.mark.parametrize(
    "prepare", [prepare_steps_torch_, prepare_steps_triton_], ids=["reference", "kernel"]
)


def expected_scale(position: int, prompt_len: int, window: Window) -> float:
    generated = position - (prompt_len - 1)
    if generated < 0:
        return float(window.prompt)
    if not window.start <= generated < window.stop:
        return 0.0
    return (1 + window.omega * (generated - window.start)) ** -window.power


def tolerance(scale: float, window: Window) -> float:
    """Of the scale, relative: what prepare_steps_ states."""
    if window.omega == 0 or scale in (0.0, 1.0):
        return 0.0
    return 2**-22 * (1 + window.power + abs(math.log2(scale)))


def table_of(*windows: Window, prompt_len: int = PROMPT_LEN) -> RequestRows:
    rows = RequestRows.allocate(len(windows), 1, DEVICE)
    for row, window in enumerate(windows):
        rows.write_row(row, [(0, 1.0)], prompt_len, window)
    return rows


def check(prepare: Prepare, spans: list[Span], windows: list[Window], n_padding: int = 0) -> None:
    """Every row is right to the bit, every scale within its tolerance."""
    steps = make_steps(spans, table_of(*windows), n_padding=n_padding)
    prepare(*steps)
    expected_row, expected, bounds = [], [], []
    for span in spans:
        window = windows[span.row] if span.row >= 0 else Window(start=OPEN_STOP)
        for position in range(span.first, span.first + span.length):
            scale = expected_scale(position, PROMPT_LEN, window)
            expected.append(scale)
            expected_row.append(span.row if scale else -1)
            bounds.append(scale * tolerance(scale, window))
    padding = len(steps.token_row) - len(expected)
    assert steps.token_row.tolist() == expected_row + [-1] * padding
    error = steps.token_scale.double().cpu() - torch.tensor(expected + [0.0] * padding).double()
    assert (error.abs() <= torch.tensor(bounds + [0.0] * padding).double() + 2**-126).all()


@either
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("chunk", [1, 3, 20], ids=lambda n: f"chunks-of-{n}")
def test_scale_follows_the_position_whatever_the_chunk(
    prepare: Prepare, name: str, chunk: int
) -> None:
    for begin in range(0, 20, chunk):
        span = Span(1, begin, min(chunk, 20 - begin))
        check(prepare, [span], [Window(), WINDOWS[name]])


@either
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_mixed_batch_with_padding_and_empty_spans(prepare: Prepare, dtype: torch.dtype) -> None:
    spans = [Span(1, 3, 2), Span(-1, 0, 3), Span(0, 0, 0), Span(0, 9, 1), Span(1, 7, 1)]
    steps = make_steps(spans, table_of(WINDOWS["all"], Window()), n_padding=3, dtype=dtype)
    prepare(*steps)
    assert steps.token_row.tolist() == [-1, 1, -1, -1, -1, 0, 1, -1, -1, -1]
    assert steps.token_scale.tolist() == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]


windows = st.builds(
    Window,
    prompt=st.booleans(),
    start=st.integers(0, 30),
    stop=st.integers(1, 60) | st.just(OPEN_STOP),
    # The tables are in fp32; a scale far below 2**-126 could only be 0.
    omega=st.just(0.0) | st.floats(0.0, 8.0, width=32),
    power=st.floats(0.0, 12.0, width=32),
)
ROWS = 5
spans = st.builds(
    Span,
    row=st.integers(-1, ROWS - 1),
    first=st.integers(0, 60),
    length=st.sampled_from([0, 1, 1, 2, 31, 33, 70]),
)


@either
@settings(max_examples=50, deadline=None)
@given(
    st.lists(windows, min_size=ROWS, max_size=ROWS),
    st.lists(spans, max_size=12),
    st.sampled_from([0, 1, 40]),
)
def test_any_batch(
    prepare: Prepare, windows: list[Window], spans: list[Span], n_padding: int
) -> None:
    check(prepare, spans, windows, n_padding)


@pytest.mark.parametrize(
    ("n_requests", "n_tokens"),
    [(1, 1), (1, 1000), (8, 1023), (256, 256), (257, 33), (600, 700)],
    ids=lambda n: str(n),
)
def test_the_kernel_equals_the_reference(n_requests: int, n_tokens: int) -> None:
    steps = random_steps(n_requests, n_tokens, DEVICE)
    prepare_steps_torch_(*steps)
    row, scale = steps.token_row.clone(), steps.token_scale.clone()
    steps.token_row.fill_(77)
    steps.token_scale.fill_(torch.nan)
    prepare_steps_triton_(*steps)
    assert torch.equal(steps.token_row, row)
    # The tolerance of each, at power 2 and scales above 2**-16.
    torch.testing.assert_close(steps.token_scale, scale, rtol=2 * 19 * 2**-22, atol=0.0)


@either
def test_an_empty_batch_steers_nothing(prepare: Prepare) -> None:
    steps = make_steps([], table_of(WINDOWS["all"]), n_padding=4)
    prepare(*steps)
    assert steps.token_row.tolist() == [-1] * 4
    assert steps.token_scale.tolist() == [0.0] * 4
    prepare(*make_steps([], table_of(WINDOWS["all"])))


@either
def test_tokens_before_the_first_request_belong_to_none(prepare: Prepare) -> None:
    steps = make_steps([Span(0, 0, 6)], table_of(WINDOWS["all"]))
    prepare(*steps._replace(query_start_loc=steps.query_start_loc.clamp(min=2)))
    assert steps.token_row.tolist() == [-1, -1, 0, 0, 0, 0]
    assert steps.token_scale.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


@either
def test_tokens_beyond_the_tables_are_left_out(prepare: Prepare) -> None:
    steps = make_steps([Span(0, 0, 8)], table_of(WINDOWS["all"]))
    prepare(steps.token_row[:6], steps.token_scale[:6], *steps[2:])
    assert steps.token_row.tolist() == [0] * 6 + [77] * 2
    assert steps.token_scale[:6].tolist() == [1.0] * 6
    assert steps.token_scale[6:].isnan().all()


@either
def test_an_open_window_has_no_end(prepare: Prepare) -> None:
    steps = make_steps([Span(0, 2**31 - 2, 1)], table_of(Window(), prompt_len=1))
    assert Window().stop == OPEN_STOP
    prepare(*steps)
    assert steps.token_scale.tolist() == [1.0]


@either
def test_a_steered_token_beyond_what_was_counted_is_fresh(prepare: Prepare) -> None:
    tally = Tally.allocate(2, 12, 3, DEVICE)
    tally.counts[:, Tally.HIGHEST_POSITION] = torch.tensor([-1, 6, 9])
    spans = [Span(0, 3, 3), Span(-1, 0, 1), Span(1, 5, 3), Span(2, 8, 2)]
    steps = make_steps(spans, table_of(*[Window(stop=3)] * 3), n_padding=2)
    before = tally.table.clone()
    fresh = tally.token_fresh[:11].fill_(77)
    prepare(*steps, token_fresh=fresh, counts=tally.counts)
    assert steps.token_row.tolist() == [-1, 0, 0, -1, 1, 1, -1, -1, -1, -1, -1]
    assert fresh.tolist() == [-1, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1]
    assert torch.equal(tally.table, before)


@either
def test_an_empty_batch_has_nothing_fresh(prepare: Prepare) -> None:
    tally = Tally.allocate(1, 4, 1, DEVICE)
    steps = make_steps([], table_of(WINDOWS["all"]), n_padding=4)
    prepare(*steps, token_fresh=tally.token_fresh.fill_(77), counts=tally.counts)
    assert tally.token_fresh.tolist() == [-1] * 4


@pytest.mark.parametrize(("n_requests", "n_tokens"), [(8, 1023), (600, 700)])
def test_the_kernel_finds_the_reference_s_fresh_tokens(n_requests: int, n_tokens: int) -> None:
    steps = random_steps(n_requests, n_tokens, DEVICE)
    tally = Tally.allocate(1, n_tokens, n_requests, DEVICE)
    tally.counts[:, Tally.HIGHEST_POSITION] = torch.arange(-1, n_requests - 1) % 90
    prepare_steps_torch_(*steps, token_fresh=tally.token_fresh, counts=tally.counts)
    expected = tally.token_fresh.clone()
    assert 0 < (expected >= 0).sum() < (steps.token_row >= 0).sum()
    tally.token_fresh.fill_(77)
    prepare_steps_triton_(*steps, token_fresh=tally.token_fresh, counts=tally.counts)
    assert torch.equal(tally.token_fresh, expected)


def test_the_registered_op_runs_behind_the_door_and_passes_opcheck() -> None:
    rows = table_of(*WINDOWS.values())
    spans = [Span(row, 2, 9) for row in range(len(WINDOWS))]
    steps, direct = (make_steps(spans, rows, n_padding=2) for _ in range(2))
    prepare_steps_(*steps[:5], rows)
    launched = prepare_steps_triton_ if DEVICE == "cuda" else prepare_steps_torch_
    launched(*direct)
    assert torch.equal(steps.token_row, direct.token_row)
    assert torch.equal(steps.token_scale, direct.token_scale)
    tally = Tally.allocate(1, len(steps.token_row), len(WINDOWS), DEVICE)
    fresh = {"token_fresh": tally.token_fresh, "counts": tally.counts}
    prepare_steps_(*steps[:5], rows, **fresh)
    assert tally.token_fresh.max() == 10
    torch.library.opcheck(torch.ops.saif.prepare_steps_.default, tuple(steps))
    torch.library.opcheck(torch.ops.saif.prepare_steps_.default, tuple(steps), fresh)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("token_row", torch.zeros(9, dtype=torch.int64)),
        ("token_scale", torch.zeros(8)),
        ("query_start_loc", torch.zeros(3, dtype=torch.int32)),
        ("request_row", torch.zeros(1, dtype=torch.int64)),
        ("positions", torch.zeros(9)),
        ("positions", torch.zeros(18, dtype=torch.int64)[::2]),
    ],
    ids=["row-dtype", "length", "starts", "requests", "positions-dtype", "positions-strided"],
)
def test_misfits_are_refused_before_anything_is_written(name: str, wrong: torch.Tensor) -> None:
    rows = table_of(Window())
    steps = make_steps([Span(0, 0, 9)], rows)
    changed = steps._replace(**{name: wrong.to(DEVICE)})
    with pytest.raises(ValueError, match=f"{name}: expected"):
        prepare_steps_(*changed[:5], rows)
    assert (steps.token_row == 77).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("counts", None),
        ("token_fresh", None),
        ("token_fresh", torch.zeros(8, dtype=torch.int32)),
        ("counts", torch.zeros(2, 3, dtype=torch.int32)),
        ("counts", torch.zeros(1, 3)),
        ("counts", torch.zeros(1, 2, dtype=torch.int32)),
        ("counts", torch.zeros(1, 6, dtype=torch.int32)[:, ::2]),
    ],
    ids=["alone", "alone-too", "length", "rows", "dtype", "columns", "strides"],
)
def test_misfit_counts_are_refused(name: str, wrong: torch.Tensor | None) -> None:
    rows, tally = table_of(Window()), Tally.allocate(1, 9, 1, DEVICE)
    steps = make_steps([Span(0, 0, 9)], rows)
    fresh = {"token_fresh": tally.token_fresh, "counts": tally.counts, name: wrong}
    with pytest.raises(ValueError, match=f"{name}: expected"):
        prepare_steps_(*steps[:5], rows, **fresh)
    assert (steps.token_row == 77).all()


def test_a_row_lies_in_one_table() -> None:
    rows = RequestRows.allocate(3, 2, DEVICE)
    rows.write_row(1, [(4, -0.5)], 7, Window(True, 1, 2, 0.25, 3.5))
    columns = ("prompt_len", "prompt", "start", "stop", "omega", "power")
    assert [getattr(rows, name)[1].item() for name in columns] == [7, 1, 1, 2, 0.25, 3.5]
    assert rows.set_slot.tolist() == [[-1, -1], [4, -1], [-1, -1]]
    assert rows.strength.tolist() == [[0, 0], [-0.5, 0], [0, 0]]
    moved = RequestRows(rows.table.clone())
    assert all(torch.equal(getattr(moved, c), getattr(rows, c)) for c in (*columns, "strength"))
    rows.clear_row(1)
    assert (rows.set_slot == -1).all() and (rows.strength == 0).all()
    assert moved.set_slot[1, 0] == 4
