"""What is counted of requests, reported and warned of, and what stops an engine."""

from __future__ import annotations

import math

import pytest
import torch
from small_batches import LAYER, SLOTS, A, asking, hooked_layer, make_tables, run

from saif_vllm.request import Placed
from saif_vllm.worker.batch import BatchTables


@pytest.fixture
def tables() -> BatchTables:
    return make_tables()


def test_a_token_that_was_not_steered_stops_the_engine(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(1)))
    run(tables, ("x", A, 1, range(1, 2)), forward=False)  # the hook is gone
    with pytest.raises(RuntimeError, match="1 tokens that should have been steered were not"):
        tables.finish_step()


def test_the_last_requests_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saif_vllm.worker.proof._KEPT", 2)
    tables = make_tables()
    for i in range(5):
        run(tables, ("x", asking("a"), 2, range(i + 2)))
    run(tables, ("x", None, 2, range(1)))
    assert [report.planned for report in tables.proof.report()] == [4, 5]
    totals = tables.proof.totals()
    assert totals.planned == totals.steered == sum(range(1, 6))


def test_the_report_says_what_was_done(tables: BatchTables) -> None:
    layer, x, y, z = hooked_layer(tables, 3.0), asking("a"), asking("b"), asking("a", start=90)

    def forward(*batch: tuple[str, Placed | None, int, range]) -> None:
        run(tables, *batch, forward=False)
        layer.steer(torch.zeros(8, 4), torch.full((8, 4), 2.0))
        tables.finish_step()

    forward(("x", x, 2, range(3)), ("z", z, 1, range(2)))
    forward(("x", x, 2, range(3, 4)), ("y", y, 1, range(1)))  # z has left
    forward(("y", y, 1, range(1, 3)))  # x too: preempted
    forward(("x", x, 2, range(4)), ("y", y, 1, range(2, 3)))  # x resumes; y had a rejected draft
    forward(("x", x, 2, range(4, 5)))
    first, second, last = tables.proof.report()
    assert [report.request_id for report in (first, second, last)] == ["a", "b", "a"]
    counted = [(report.planned, report.steered) for report in (first, second, last)]
    assert counted == [(4, 4), (3, 3), (0, 0)]
    assert (first.dose[LAYER].mean, first.dose[LAYER].max) == (1.5, 1.5)
    assert first.window_reached and not last.window_reached


def test_a_shortened_change_is_reported_and_warned_of_once(
    tables: BatchTables, caplog: pytest.LogCaptureFixture
) -> None:
    layer, cut, whole = hooked_layer(tables, 3.0, max_dose=1.0), asking("a"), asking("b")
    layer.bank.vector[SLOTS["b"]] /= 10
    with caplog.at_level("WARNING", logger="vllm.saif"):
        for position in range(3):
            positions = range(position, position + 1)
            run(tables, ("c", cut, 1, positions), ("w", whole, 1, positions), forward=False)
            layer.steer(torch.zeros(2, 4), torch.full((2, 4), 2.0))
            tables.finish_step()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("request a (a*1): steering is weaker than asked for at some tokens")
    reports = [(report.steered, report.shortened) for report in tables.proof.report()]
    assert reports == [(3, 3), (3, 0)]
    assert tables.proof.report()[0].dose[LAYER].max == pytest.approx(1.0)
    assert tables.proof.totals().shortened == 3


def test_a_request_that_is_not_finite_is_named_until_it_leaves_and_counted_apart(
    tables: BatchTables,
) -> None:
    layer, broken, sound = hooked_layer(tables, 3.0), asking("a"), asking("b")

    def forward(position: int, *asked: Placed, stream: float = 2.0) -> tuple[int, ...]:
        positions = range(position, position + 1)
        run(tables, *((x.request_id, x, 1, positions) for x in asked), forward=False)
        hidden = torch.full((2, 4), 2.0)
        hidden[0] = stream
        layer.steer(hidden, None)
        tables.finish_step()
        return tables.proof.nonfinite_of_last_step()()

    assert forward(0, broken, sound) == ()
    assert forward(1, broken, sound, stream=torch.inf) == (broken.serial,)
    assert forward(2, broken, sound) == (broken.serial,)
    assert forward(2, sound) == ()
    assert forward(3, asking("a"), sound) == ()  # in the row that it had
    first, second, _ = tables.proof.report()
    assert (first.planned, first.steered, first.nonfinite) == (3, 2, 1)
    assert (second.planned, second.steered, second.nonfinite) == (4, 4, 0)
    assert math.isfinite(first.dose[LAYER].max)
    totals = tables.proof.totals()
    assert totals.nonfinite == 1 and math.isfinite(totals.dose[LAYER])


def test_a_high_dose_is_warned_of_once_a_request(caplog: pytest.LogCaptureFixture) -> None:
    tables = make_tables(warn_dose=1.0)
    layer = hooked_layer(tables, 3.0)
    weak, strong = asking("b"), asking("a")
    with caplog.at_level("WARNING", logger="vllm.saif"):
        for position in range(4):
            positions = range(position, position + 1)
            run(tables, ("s", strong, 1, positions), ("w", weak, 1, positions), forward=False)
            layer.steer(torch.zeros(2, 4), torch.full((2, 4), 2.0))
            tables.finish_step()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("request a (a*1): steering changes the residual stream by 1.5 times")
