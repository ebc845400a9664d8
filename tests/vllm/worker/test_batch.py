from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from waits import Methods, Ops

from saif_kernels import LatentEdits, RequestRows, SteeringBank, Tally, Window, prepare_steps_
from saif_kernels.request_rows import copy_from_host
from saif_vllm.request import SetUse, Steered
from saif_vllm.worker.batch import BatchRequest, BatchTables
from saif_vllm.worker.capture import LastTokenCapture
from saif_vllm.worker.layers import HookedLayer
from saif_vllm.worker.proof import Proof

SLOTS = {"a": 0, "b": 1}
MAX_REQUESTS, MAX_TOKENS, LAYER, D_MODEL = 3, 32, 7, 4
SERIALS = itertools.count()


def make_tables(warn_dose: float | None = None, captures: bool = False) -> BatchTables:
    proof = Proof(Tally.allocate(1, MAX_TOKENS, MAX_REQUESTS, "cpu"), [LAYER], warn_dose)
    capture = LastTokenCapture(1, 4, D_MODEL, torch.float32, "cpu") if captures else None
    return BatchTables(RequestRows.allocate(MAX_REQUESTS, 2, "cpu"), proof, MAX_TOKENS, capture)


@pytest.fixture
def tables() -> BatchTables:
    return make_tables()


def asking(*sets: str, **window: Any) -> Steered:
    uses = tuple(
        SetUse(name, name * 64, 1.0 + i, changes_kv=False, slot=SLOTS[name])
        for i, name in enumerate(sets)
    )
    name, serial = "+".join(sets), next(SERIALS)
    return Steered(uses, Window(**window), request_id=name, serial=serial)


A, B, BOTH = asking("a"), asking("b"), asking("a", "b")
RUNNING: dict[tuple[str, int, int], BatchRequest] = {}


def request(name: str, asked: Steered | None, prompt_len: int) -> BatchRequest:
    """Return one object per request, as the patches of the model runners do."""
    new = BatchRequest(asked, prompt_len)
    return RUNNING.setdefault((name, id(asked), prompt_len), new)


def run(
    tables: BatchTables,
    *batch: tuple[str, Steered | None, int, range],
    forward: bool = True,
) -> None:
    """Run one step of requests: (id, what it asks for, prompt length, positions) each.

    Its forward steers by nothing; without one, the step is not finished.
    """
    lengths = [len(positions) for *_, positions in batch]
    tables.begin_step(
        requests=[request(name, asked, prompt_len) for name, asked, prompt_len, _ in batch],
        query_start_loc=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        positions=torch.tensor([p for *_, positions in batch for p in positions]),
        n_tokens=sum(lengths),
    )
    if forward:
        steered = tables.token_row[: sum(lengths)] >= 0
        tables.proof.tally.dose[:, : sum(lengths), 0][:, steered] = torch.tensor([0.0, 1.0])
        tables.finish_step()


def slots(tables: BatchTables) -> list[list[int]]:
    """Return the set slots of each token, as the kernel will see them."""
    found = []
    for row, scale in zip(tables.token_row.tolist(), tables.token_scale.tolist(), strict=True):
        used = tables.rows.set_slot[row].tolist() if row >= 0 and scale else []
        found.append([slot for slot in used if slot >= 0])
    return found


def rest(n: int) -> list[list[int]]:
    return [[]] * (MAX_TOKENS - n)


def test_each_token_gets_its_requests_sets(tables: BatchTables) -> None:
    run(tables, ("x", A, 3, range(3)), ("y", None, 2, range(2)), ("z", BOTH, 2, range(5, 6)))
    assert slots(tables) == [[], [], [0], [], [], [0, 1], *rest(6)]


def test_padding_and_what_an_earlier_batch_left_are_unsteered(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(20)))
    run(tables, ("x", A, 1, range(20, 21)))
    assert slots(tables) == [[0], *rest(1)]
    run(tables, ("y", None, 1, range(8)))
    assert slots(tables) == rest(0)


def test_requests_may_change_places(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(1)), ("y", B, 1, range(1)))
    run(tables, ("y", B, 1, range(1, 2)), ("x", A, 1, range(1, 2)))
    assert slots(tables) == [[1], [0], *rest(2)]


def test_rows_are_given_back(tables: BatchTables) -> None:
    for i in range(5 * MAX_REQUESTS):
        run(tables, (f"x{i}", A, 1, range(1)), (f"y{i}", B, 1, range(1)), (f"z{i}", B, 1, range(1)))
        assert slots(tables) == [[0], [1], [1], *rest(3)]


def test_an_id_comes_back_with_other_wishes(tables: BatchTables) -> None:
    run(tables, ("x", A, 4, range(4)))
    run(tables, ("x", B, 2, range(2)))
    assert slots(tables) == [[], [1], *rest(2)]


def test_preempted_and_resumed(tables: BatchTables) -> None:
    run(tables, ("x", A, 2, range(4)), ("y", B, 1, range(1)))
    run(tables, ("y", B, 1, range(1, 2)))
    run(tables, ("y", B, 1, range(2, 3)), ("x", A, 2, range(3)), ("z", B, 1, range(1)))
    assert slots(tables) == [[1], [], [0], [0], [1], *rest(5)]


def test_a_dummy_batch_between_steps_steers_nothing_and_harms_nothing(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(2)))
    tables.clear_tokens()
    assert slots(tables) == rest(0)
    tables.clear_tokens()
    run(tables, ("x", A, 1, range(2, 3)))
    assert slots(tables) == [[0], *rest(1)]
    (report,) = tables.proof.report()
    assert (report.planned, report.steered) == (3, 3)


class Work(NamedTuple):
    """The cost of a step: launches, and tensors copied to the device."""

    launches: list[int]  # tokens of each
    copies: list[Tensor]

    def drain(self) -> tuple[list[int], int]:
        done = list(self.launches), len(self.copies)
        self.launches.clear()
        self.copies.clear()
        return done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count the work of ``begin_step``."""
    work = Work([], [])

    def launch(**arguments: Any) -> None:
        work.launches.append(len(arguments["token_row"]))
        prepare_steps_(**arguments)

    def copy(target: Tensor, host: Tensor) -> None:
        work.copies.append(host)
        copy_from_host(target, host)

    monkeypatch.setattr("saif_vllm.worker.batch.prepare_steps_", launch)
    monkeypatch.setattr("saif_vllm.worker.batch.copy_from_host", copy)
    monkeypatch.setattr("saif_kernels.request_rows.copy_from_host", copy)
    return work


def test_a_step_is_one_launch_and_an_unchanged_batch_copies_nothing(
    tables: BatchTables, work: Work
) -> None:
    x, y, z = ("x", A, 2), ("y", None, 1), ("z", B, 1)
    run(tables, (*x, range(2)), (*y, range(3)))
    assert work.drain() == ([5], 2)  # x's row, the batch's rows
    run(tables, (*x, range(2, 3)), (*y, range(3, 4)))
    assert work.drain() == ([5], 0)  # what the step before filled is cleared in the same launch
    run(tables, (*x, range(3, 4)), (*y, range(4, 5)))
    assert work.drain() == ([2], 0)
    run(tables, (*y, range(5, 6)), (*x, range(4, 5)))
    assert work.drain() == ([2], 1)
    run(tables, (*y, range(6, 7)), (*x, range(5, 6)), (*z, range(1)))
    assert work.drain() == ([3], 2)
    assert slots(tables) == [[], [0], [1], *rest(3)]


def test_a_batch_that_nobody_steers_costs_nothing(tables: BatchTables, work: Work) -> None:
    run(tables, ("y", None, 1, range(8)))
    run(tables, ("y", None, 1, range(8, 9)), ("z", None, 1, range(4)))
    assert work.drain() == ([], 0)
    run(tables, ("x", A, 1, range(8)))
    assert work.drain() == ([8], 2)
    run(tables, ("y", None, 1, range(9, 10)))  # what x left is cleared once
    assert work.drain() == ([8], 1)
    assert slots(tables) == rest(0)
    run(tables, ("y", None, 1, range(10, 11)))
    run(tables, ("z", None, 1, range(4, 5)))
    assert work.drain() == ([], 0)


def test_tables_keep_their_memory(tables: BatchTables) -> None:
    before = {name: buffer.data_ptr() for name, buffer in tables.tensors().items()}
    assert {"token_row", "token_scale", "request_rows"} <= before.keys()
    run(tables, ("x", A, 1, range(2)))
    with tables.rehearse(BatchRequest(B, 8), 8):
        hooked_layer(tables).steer(torch.zeros(8, D_MODEL), None)
    assert {name: buffer.data_ptr() for name, buffer in tables.tensors().items()} == before


def hooked_layer(
    tables: BatchTables, value: float = 1.0, max_dose: float | None = None
) -> HookedLayer:
    bank = SteeringBank.allocate(D_MODEL, 2, 1, torch.float32, "cpu")
    bank.write(0, 0, LatentEdits.empty(D_MODEL)._replace(vector=torch.full((D_MODEL,), value)))
    return HookedLayer(bank, tables, 0, max_dose)


def test_a_layer_steers_and_leaves_evidence(tables: BatchTables) -> None:
    layer, hidden = hooked_layer(tables), torch.zeros(8, 4)  # three of padding
    run(tables, ("x", A, 2, range(3)), ("y", None, 1, range(2)), forward=False)
    layer.steer(hidden, torch.full((8, 4), 2.0))
    assert hidden[:, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert layer.dose[:5, 0].tolist() == [[-1, -1], [4, 16], [4, 16], [-1, -1], [-1, -1]]


def test_a_rehearsal_is_a_step_that_leaves_nothing(tables: BatchTables) -> None:
    layer = hooked_layer(tables)
    for _ in range(2):
        with tables.rehearse(BatchRequest(asking("a", prompt=True), 8), 8):
            tables.clear_tokens()  # the seam of dummy batches
            assert slots(tables) == [[0]] * 8 + rest(8)
            layer.steer(torch.zeros(10, D_MODEL), None)
            assert (layer.dose[:, 0, 0] >= 0).sum() == 8
        assert slots(tables) == rest(0)
        assert (layer.dose == -1).all()
        assert tables.proof.report() == []
    run(tables, ("x", A, 1, range(2)))
    assert slots(tables) == [[0], [0], *rest(2)]
    (report,) = tables.proof.report()
    assert (report.planned, report.steered) == (2, 2)
    tables.clear_tokens()
    assert slots(tables) == rest(0)


def test_a_rehearsal_that_misses_a_token_fails(tables: BatchTables) -> None:
    with (
        pytest.raises(RuntimeError, match="3 tokens that should have been steered were not"),
        tables.rehearse(BatchRequest(asking("a", prompt=True), 8), 8),
    ):
        hooked_layer(tables).steer(torch.zeros(5, D_MODEL), None)


def test_a_token_that_was_not_steered_stops_the_engine(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(1)))
    run(tables, ("x", A, 1, range(1, 2)), forward=False)  # the hook is gone
    with pytest.raises(RuntimeError, match="1 tokens that should have been steered were not"):
        tables.finish_step()


def test_a_step_that_was_not_begun_stops_the_engine(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(1)))
    with pytest.raises(RuntimeError, match="not prepared for steering"):
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

    def forward(*batch: tuple[str, Steered | None, int, range]) -> None:
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


def record_of_a_step(
    others: tuple[Steered | None, ...], captures: bool, max_dose: float | None
) -> list[object]:
    """Record the ops of a step whose batch is that of the step before; fail if a step waits."""
    tables = make_tables(warn_dose=0.5, captures=captures)
    layer, hidden = hooked_layer(tables, max_dose=max_dose), torch.zeros(8, D_MODEL)
    asked = [A, *others, *([Steered((), Window(), capture=3)] if captures else [])]

    def forward(position: int, n_requests: int) -> list[object]:
        positions = range(position, position + 1)
        batch = [(str(i), x, 1, positions) for i, x in enumerate(asked[:n_requests])]
        ops: list[object] = []
        with Methods(list(tables.proof.signals._free_hosts)), Ops(ops):
            run(tables, *batch, forward=False)
            layer.steer(hidden, hidden)
            tables.finish_step()
        return ops

    forward(0, len(asked))
    record = forward(1, len(asked))
    forward(2, 1)  # the others have left
    return record


@pytest.mark.parametrize("max_dose", [None, 0.1], ids=["no_cap", "cap"])
@pytest.mark.parametrize("captures", [False, True], ids=["no_capture", "capture"])
def test_a_step_waits_for_nothing_and_no_shape_depends_on_who_is_steered(
    captures: bool, max_dose: float | None
) -> None:
    # In a CUDA graph a captured shape stays; and a host that waits loses its lead on the device.
    first, *others = (
        record_of_a_step(batch, captures, max_dose) for batch in ((None, B), (A, B), (BOTH, None))
    )
    assert all(record == first for record in others)
    ops = [str(op) for op, *_ in first]
    assert sum("saif" in op for op in ops) == 3  # prepare, steer, tally


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

    def forward(position: int, *asked: Steered, stream: float = 2.0) -> tuple[int, ...]:
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
