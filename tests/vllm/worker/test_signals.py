"""What the host hears of the device's counters: what stops an engine, who is named or warned of."""

from __future__ import annotations

import pytest
from small_batches import asking

from saif_kernels import Tally, Window
from saif_vllm.request import Placed
from saif_vllm.worker.signals import Signals

CANARY = Placed((), Window(), request_id="canary", slots=())


@pytest.fixture
def tally() -> Tally:
    return Tally.allocate(n_layers=2, max_tokens=4, max_requests=3, device="cpu")


def test_a_missed_token_stops_the_engine(tally: Tally) -> None:
    signals = Signals(tally, warn_dose=None)
    signals.send_counters()
    signals.read_counters()
    tally.missed.fill_(3)
    signals.send_counters()
    with pytest.raises(RuntimeError, match="3 tokens that should have been steered were not"):
        signals.read_counters()


def test_a_request_that_is_not_finite_is_named_by_the_copy_that_was_waited_for(
    tally: Tally,
) -> None:
    signals, first, second = Signals(tally, None), asking("a"), asking("b")
    signals.watch_row(0, first)
    signals.watch_row(1, CANARY)
    tally.counts[:2, Tally.NONFINITE] = 1
    one = signals.send_counters()
    # The row's next request is not blamed for what was sent before.
    signals.watch_row(0, second)
    tally.clear_row(0)
    tally.clear_row(1)
    signals.forget_row(1)
    signals.watch_row(2, second)
    tally.counts[2, Tally.NONFINITE] = 1
    two = signals.send_counters()
    signals.read_counters()
    assert two == one + 1
    assert signals.take_nonfinite(until=one) == (first.serial,)
    assert signals.take_nonfinite(until=two) == (second.serial,)
    assert signals.take_nonfinite(until=two) == ()


@pytest.mark.parametrize("kind", ["shortened", "dose"])
def test_a_warning_comes_once_a_request_and_names_it(
    kind: str, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    signals, first, second = Signals(tally, warn_dose=1.5), asking("a"), asking("b")

    def step(row: int, request: Placed) -> None:
        signals.watch_row(row, request)
        tally.clear_row(row)
        for _ in range(2):
            if kind == "dose":
                tally.dose_max[row, 1] = 2.5
            else:
                tally.counts[row, Tally.SHORTENED] += 1
            signals.send_counters()
            signals.read_counters()

    with caplog.at_level("WARNING", logger="vllm.saif"):
        tally.dose_max[2, 0] = 1.5  # not above
        step(1, first)
        step(1, second)
        tally.clear_row(1)
        step(0, CANARY)
    sentence = {
        "shortened": "steering is weaker than asked for at some tokens",
        "dose": "steering changes the residual stream by 2.5 times its norm",
    }[kind]
    starts = [f"request {name} ({name}*1): {sentence}" for name in ("a", "b")]
    messages = [record.getMessage() for record in caplog.records]
    assert [m[: len(s)] for m, s in zip(messages, starts, strict=True)] == starts


def test_no_dose_is_read_where_none_is_warned_of(
    tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    signals = Signals(tally, warn_dose=None)
    signals.watch_row(0, asking("a"))
    tally.dose_max.fill_(1e6)
    signals.send_counters()
    signals.read_counters()
    assert not caplog.records
