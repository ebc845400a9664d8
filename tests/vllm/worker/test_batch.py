"""Which token of a batch is steered by which sets, at what cost, and what is left behind."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from small_batches import (
    BOTH,
    D_MODEL,
    MAX_REQUESTS,
    A,
    B,
    asking,
    hooked_layer,
    make_tables,
    rest,
    run,
    slots,
)
from torch import Tensor
from waits import Methods, Ops

from saif_kernels import Window, copy_from_host, prepare_steps_
from saif_vllm.request import Placed
from saif_vllm.worker.batch import BatchRequest, BatchTables


@pytest.fixture
def tables() -> BatchTables:
    return make_tables()


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


def test_a_step_that_was_not_begun_stops_the_engine(tables: BatchTables) -> None:
    run(tables, ("x", A, 1, range(1)))
    with pytest.raises(RuntimeError, match="not prepared for steering"):
        tables.finish_step()


def record_of_a_step(
    others: tuple[Placed | None, ...], captures: bool, max_dose: float | None
) -> list[object]:
    """Record the ops of a step whose batch is that of the step before; fail if a step waits."""
    tables = make_tables(warn_dose=0.5, captures=captures)
    layer, hidden = hooked_layer(tables, max_dose=max_dose), torch.zeros(8, D_MODEL)
    asked = [A, *others, *([Placed((), Window(), capture=3, slots=())] if captures else [])]

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
