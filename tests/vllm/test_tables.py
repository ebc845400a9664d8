from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from torch import Tensor, nn

from saif_kernels import LatentEdits, RequestRows, SteeringBank, Window, prepare_steps
from saif_kernels.rows import copy_to
from saif_vllm.attach import decoder_layers, refuse_unsupported
from saif_vllm.op import steering_hook
from saif_vllm.request import SetUse, Steered
from saif_vllm.tables import BatchRequest, LayerTables, StepTables

SLOTS = {"a" * 64: 0, "b" * 64: 1}
MAX_REQUESTS, MAX_TOKENS = 3, 32


@pytest.fixture
def step() -> StepTables:
    return StepTables(SLOTS, RequestRows.allocate(MAX_REQUESTS + 1, 2, "cpu"), MAX_TOKENS)


def asking(*sets: str, **window: Any) -> dict[str, object]:
    uses = tuple(SetUse(name, name * 64, 1.0 + i) for i, name in enumerate(sets))
    return {"saif": msgspec.to_builtins(Steered(uses, Window(**window), admitted=True))}


A, B, BOTH = asking("a"), asking("b"), asking("a", "b")
RUNNING: dict[tuple[str, int, int], BatchRequest] = {}


def request(name: str, asked: Mapping[str, object] | None, prompt_len: int) -> BatchRequest:
    """One object for one request, as the model runners' seams have it."""
    new = BatchRequest(name, asked, prompt_len)
    return RUNNING.setdefault((name, id(asked), prompt_len), new)


def run(step: StepTables, *batch: tuple[str, Mapping[str, object] | None, int, range]) -> None:
    """One step: (id, what it asks for, prompt length, positions) of each request."""
    lengths = [len(positions) for *_, positions in batch]
    step.begin_step(
        batch=[request(name, asked, prompt_len) for name, asked, prompt_len, _ in batch],
        query_start_loc=torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
        positions=torch.tensor([p for *_, positions in batch for p in positions]),
        n_tokens=sum(lengths),
    )


def slots(step: StepTables) -> list[list[int]]:
    """Set slots of each token, as the kernel will see them."""
    found = []
    for row, scale in zip(step.token_row.tolist(), step.token_scale.tolist(), strict=True):
        used = step.rows.set_slot[row].tolist() if row >= 0 and scale else []
        found.append([slot for slot in used if slot >= 0])
    return found


def rest(n: int) -> list[list[int]]:
    return [[]] * (MAX_TOKENS - n)


def test_each_token_gets_its_requests_sets(step: StepTables) -> None:
    run(step, ("x", A, 3, range(3)), ("y", None, 2, range(2)), ("z", BOTH, 2, range(5, 6)))
    assert slots(step) == [[], [], [0], [], [], [0, 1], *rest(6)]


def test_padding_and_what_an_earlier_batch_left_are_unsteered(step: StepTables) -> None:
    run(step, ("x", A, 1, range(20)))
    run(step, ("x", A, 1, range(20, 21)))
    assert slots(step) == [[0], *rest(1)]
    run(step, ("y", None, 1, range(8)))
    assert slots(step) == rest(0)


def test_requests_may_change_places(step: StepTables) -> None:
    run(step, ("x", A, 1, range(1)), ("y", B, 1, range(1)))
    run(step, ("y", B, 1, range(1, 2)), ("x", A, 1, range(1, 2)))
    assert slots(step) == [[1], [0], *rest(2)]


def test_rows_are_given_back(step: StepTables) -> None:
    for i in range(5 * MAX_REQUESTS):
        run(step, (f"x{i}", A, 1, range(1)), (f"y{i}", B, 1, range(1)), (f"z{i}", B, 1, range(1)))
        assert slots(step) == [[0], [1], [1], *rest(3)]


def test_an_id_comes_back_with_other_wishes(step: StepTables) -> None:
    run(step, ("x", A, 4, range(4)))
    run(step, ("x", B, 2, range(2)))
    assert slots(step) == [[], [1], *rest(2)]


def test_preempted_and_resumed(step: StepTables) -> None:
    run(step, ("x", A, 2, range(4)), ("y", B, 1, range(1)))
    run(step, ("y", B, 1, range(1, 2)))
    run(step, ("y", B, 1, range(2, 3)), ("x", A, 2, range(3)), ("z", B, 1, range(1)))
    assert slots(step) == [[1], [], [0], [0], [1], *rest(5)]


def test_a_dummy_batch_between_steps_steers_nothing_and_harms_nothing(step: StepTables) -> None:
    run(step, ("x", A, 1, range(2)))
    run(step, ("req_0_dummy", None, 0, range(4)))
    assert slots(step) == rest(0)
    run(step, ("x", A, 1, range(2, 3)))
    assert slots(step) == [[0], *rest(1)]


class Work(NamedTuple):
    """What a step costs: launches, and tensors copied to the device."""

    launches: list[int]  # tokens of each
    copies: list[Tensor]

    def drain(self) -> tuple[list[int], int]:
        done = list(self.launches), len(self.copies)
        self.launches.clear()
        self.copies.clear()
        return done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Of begin_step, counted."""
    work = Work([], [])

    def launch(**arguments: Any) -> None:
        work.launches.append(len(arguments["token_row"]))
        prepare_steps(**arguments)

    def copy(target: Tensor, host: Tensor) -> None:
        work.copies.append(host)
        copy_to(target, host)

    monkeypatch.setattr("saif_vllm.tables.prepare_steps", launch)
    monkeypatch.setattr("saif_vllm.tables.copy_to", copy)
    monkeypatch.setattr("saif_kernels.rows.copy_to", copy)
    return work


def test_a_step_is_one_launch_and_an_unchanged_batch_copies_nothing(
    step: StepTables, work: Work
) -> None:
    x, y, z = ("x", A, 2), ("y", None, 1), ("z", B, 1)
    run(step, (*x, range(2)), (*y, range(3)))
    assert work.drain() == ([5], 2)  # x's row, the batch's rows
    run(step, (*x, range(2, 3)), (*y, range(3, 4)))
    assert work.drain() == ([5], 0)  # what the step before filled is cleared in the same launch
    run(step, (*x, range(3, 4)), (*y, range(4, 5)))
    assert work.drain() == ([2], 0)
    run(step, (*y, range(5, 6)), (*x, range(4, 5)))
    assert work.drain() == ([2], 1)
    run(step, (*y, range(6, 7)), (*x, range(5, 6)), (*z, range(1)))
    assert work.drain() == ([3], 2)
    assert slots(step) == [[], [0], [1], *rest(3)]


def test_a_batch_that_nobody_steers_costs_nothing(step: StepTables, work: Work) -> None:
    run(step, ("y", None, 1, range(8)))
    run(step, ("y", None, 1, range(8, 9)), ("z", None, 1, range(4)))
    assert work.drain() == ([], 0)
    run(step, ("x", A, 1, range(8)))
    assert work.drain() == ([8], 2)
    run(step, ("y", None, 1, range(9, 10)))  # what x left is cleared once
    assert work.drain() == ([8], 1)
    assert slots(step) == rest(0)
    run(step, ("y", None, 1, range(10, 11)))
    run(step, ("z", None, 1, range(4, 5)))
    assert work.drain() == ([], 0)


def test_the_tables_survive_sleep(step: StepTables) -> None:
    x = ("x", A, 2)
    run(step, (*x, range(2)))
    # As vLLM's worker does: contents go, memory and buffers stay.
    saved = {name: buffer.cpu().clone() for name, buffer in step.named_buffers()}
    for buffer in step.buffers():
        buffer.random_(2, 99)
    for name, buffer in step.named_buffers():
        buffer.data.copy_(saved[name].data)
    run(step, (*x, range(2, 3)))
    assert slots(step) == [[0], *rest(1)]
    assert step.rows.strength[0].tolist() == [1.0, 0.0]


def test_a_request_that_was_not_admitted_stops_the_engine(step: StepTables) -> None:
    with pytest.raises(RuntimeError, match="unchecked"):
        run(step, ("x", {"saif": "french"}, 1, range(1)))


def test_tables_keep_their_memory(step: StepTables) -> None:
    before = {name: buffer.data_ptr() for name, buffer in step.named_buffers()}
    assert {"token_row", "token_scale", "request_rows"} <= before.keys()
    run(step, ("x", A, 1, range(2)))
    step.force_row(step.canary_row)
    step.force_row(None)
    assert {name: buffer.data_ptr() for name, buffer in step.named_buffers()} == before
    assert not step.state_dict()  # weights of a checkpoint never meet them


def test_a_layer_steers_and_counts(step: StepTables) -> None:
    bank = SteeringBank.allocate(4, 2, 1, torch.float32, "cpu")
    bank.write(0, 0, LatentEdits.empty(4)._replace(vector=torch.ones(4)))
    layer, hidden = LayerTables(bank, step), torch.zeros(8, 4)  # three of padding
    run(step, ("x", A, 2, range(3)), ("y", None, 1, range(2)))
    layer.steer(hidden, torch.zeros(8, 4))
    assert hidden[:, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert int(layer.n_steered) == 0  # only the canary counts
    step.force_row(step.canary_row)
    layer.steer(hidden, None)
    assert int(layer.n_steered) == 8


@pytest.mark.parametrize(
    "output",
    [
        (torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)),
        (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)),
        {"hidden": torch.zeros(3, 4)},
        None,
    ],
    ids=["three", "batched", "dictionary", "nothing"],
)
def test_a_layer_that_returns_something_else_is_refused(output: object) -> None:
    with pytest.raises(TypeError, match="does not know this model's structure"):
        steering_hook("saif.layers.1")(nn.Identity(), (), output)


def test_the_op_stays_in_the_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    forward_context = pytest.importorskip("vllm.forward_context")

    def steer(hidden: Tensor, residual: Tensor | None) -> None:
        hidden.add_(1)

    context = SimpleNamespace(no_compile_layers={"saif.layers.0": SimpleNamespace(steer=steer)})
    monkeypatch.setattr(forward_context, "get_forward_context", lambda: context)
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(steering_hook("saif.layers.0"))
    x = torch.randn(3, 4)
    with torch.no_grad():
        plain = nn.functional.linear(x, layer.weight, layer.bias)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), plain + 1)


def test_decoder_layers_are_found_by_structure() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    assert decoder_layers(model, 3) is model.layers
    model.tower = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    with pytest.raises(ValueError, match=r"expected one list of 3 decoder layers, got \['layers'"):
        decoder_layers(model, 3)
    with pytest.raises(ValueError, match=r"got \[\]"):
        decoder_layers(model, 5)


class CohereDecoderLayer(nn.Module):
    pass


class CohereEagleDecoderLayer(CohereDecoderLayer):
    pass


def test_a_stream_that_is_not_the_sum_of_the_outputs_is_refused() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([CohereEagleDecoderLayer()])
    with pytest.raises(ValueError, match="CohereEagleDecoderLayer"):
        decoder_layers(model, 1)


@pytest.mark.parametrize(
    "on",
    ["use_ubatching", "prefill_context_parallel_size", "kv_sharing_fast_prefill", "graphs", None],
)
def test_engine_features_that_would_steer_wrongly_are_refused(on: str | None) -> None:
    modes = pytest.importorskip("vllm.config").CUDAGraphMode
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            use_ubatching=on == "use_ubatching",
            prefill_context_parallel_size=1 + (on == "prefill_context_parallel_size"),
        ),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=on == "kv_sharing_fast_prefill"),
        compilation_config=SimpleNamespace(
            cudagraph_mode=modes.FULL_AND_PIECEWISE if on == "graphs" else modes.NONE
        ),
    )
    if on is None:
        refuse_unsupported(config)
        return
    with pytest.raises(ValueError, match="expected off in an engine that steers"):
        refuse_unsupported(config)
