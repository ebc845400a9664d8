"""prepare_steps against the sentence that defines a window, token by token."""

from __future__ import annotations

import pytest
import torch

from saif_kernels import OPEN_STOP, RequestRows, Window, prepare_steps

WINDOWS = {
    "generated": Window(),
    "all": Window(prompt=True),
    "prompt": Window(prompt=True, start=0, stop=1),
    "start": Window(start=2),
    "stop": Window(stop=3),
    "decay": Window(start=1, stop=9, omega=0.5, power=2.0),
}
PROMPT_LEN = 5


def expected_scale(position: int, window: Window) -> float:
    generated = position - (PROMPT_LEN - 1)
    if generated < 0:
        return float(window.prompt)
    if not window.start <= generated < window.stop:
        return 0.0
    return (1 + window.omega * max(generated - window.start, 0)) ** -window.power


def run(
    spans: list[tuple[int, list[int]]], rows: RequestRows, n_padding: int = 0
) -> tuple[list[int], list[float]]:
    """Spans: (row, positions) of each request in batch order."""
    starts = torch.tensor([0, *(len(p) for _, p in spans)]).cumsum(0).int()
    positions = torch.tensor([p for _, span in spans for p in span] + [0] * n_padding)
    n_tokens = len(positions)
    token_row = torch.full((n_tokens,), 77, dtype=torch.int32)
    token_scale = torch.full((n_tokens,), torch.nan)
    request_row = torch.tensor([row for row, _ in spans], dtype=torch.int32)
    prepare_steps(token_row, token_scale, starts, request_row, positions, rows)
    return token_row.tolist(), token_scale.tolist()


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("chunk", [1, 3, 20], ids=lambda n: f"chunks-of-{n}")
def test_scale_follows_the_position_whatever_the_chunk(name: str, chunk: int) -> None:
    window = WINDOWS[name]
    rows = RequestRows.allocate(2, 1, "cpu")
    rows.write(1, [(0, 1.0)], PROMPT_LEN, window)
    for begin in range(0, 20, chunk):
        span = list(range(begin, min(begin + chunk, 20)))
        token_row, token_scale = run([(1, span)], rows)
        expected = [expected_scale(position, window) for position in span]
        assert token_scale == pytest.approx(expected)
        assert token_row == [1 if scale else -1 for scale in expected]


def test_a_mixed_batch_with_padding_and_empty_spans() -> None:
    rows = RequestRows.allocate(3, 1, "cpu")
    rows.write(0, [(0, 1.0)], PROMPT_LEN, WINDOWS["all"])
    rows.write(2, [(0, 1.0)], PROMPT_LEN)
    spans = [(2, [3, 4]), (-1, [0, 1, 2]), (0, []), (0, [9]), (2, [7])]
    token_row, token_scale = run(spans, rows, n_padding=3)
    assert token_row == [-1, 2, -1, -1, -1, 0, 2, -1, -1, -1]
    assert token_scale == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]


def test_an_empty_batch_steers_nothing() -> None:
    rows = RequestRows.allocate(1, 1, "cpu")
    rows.write(0, [(0, 1.0)], PROMPT_LEN, WINDOWS["all"])
    assert run([], rows, n_padding=4) == ([-1] * 4, [0.0] * 4)


def test_an_open_window_has_no_end() -> None:
    rows = RequestRows.allocate(1, 1, "cpu")
    rows.write(0, [(0, 1.0)], 1, Window())
    assert Window().stop == OPEN_STOP
    assert run([(0, [2**30])], rows)[1] == [1.0]
