"""A model runner is armed where it is as expected, and refused where it is not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from saif_kernels import Window
from saif_vllm.request import Placed
from saif_vllm.worker.patches import arm_runner, check_runner


class Runner:
    def execute_model(self, scheduler_output: Any) -> None: ...

    def sample_tokens(self, grammar_output: Any) -> Any:
        return grammar_output  # which is its output

    def _dummy_run(
        self,
        num_tokens: int,
        *,
        uniform_decode: bool = False,
        skip_eplb: bool = False,
        is_profile: bool = False,
        force_attention: bool = False,  # V1's
        skip_attn: bool = False,  # V2's
    ) -> None:
        self.execute_model(SimpleNamespace(total_num_scheduled_tokens=num_tokens))


class V1(Runner):
    input_batch = requests = query_start_loc = positions = get_model = None

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> None: ...


class V2State:
    def add_request(self, req_index: int, new_req_data: Any) -> None: ...

    def remove_request(self, req_id: str) -> None: ...

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> None: ...


class V2(Runner):
    def __init__(self, state: type[Any]) -> None:
        self.model_state = state()


class Step:
    """Notes the calls of a runner."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.nonfinite: tuple[int, ...] = ()
        self.proof = SimpleNamespace(nonfinite_of_last_step=lambda: lambda: self.nonfinite)

    def begin_step(self, **arguments: Any) -> None:
        self.calls.append(arguments)

    def clear_tokens(self) -> None:
        self.calls.append("clear")

    def finish_step(self) -> None:
        self.calls.append("finish")


RUNNERS: dict[str, tuple[type[Any], Callable[[type[Any]], Any], list[str]]] = {
    "v1": (V1, lambda cls: cls(), ["_prepare_inputs", "_dummy_run", "sample_tokens"]),
    "v2": (V2State, V2, ["add_request", "remove_request", "prepare_inputs"]),
}
TABLE = list(range(9))


@pytest.mark.parametrize("version", RUNNERS)
def test_a_runner_as_expected_is_armed(version: str) -> None:
    cls, runner, seams = RUNNERS[version]
    armed, step = runner(cls), Step()
    check_runner(armed)
    arm_runner(armed, step)  # type: ignore[arg-type]
    owner = getattr(armed, "model_state", armed)
    # What is called from now on is ours, on this runner only.
    assert set(vars(owner)) >= set(seams)
    armed._dummy_run(8)
    assert step.calls == ["clear"]
    armed.execute_model(SimpleNamespace(total_num_scheduled_tokens=0))
    assert step.calls == ["clear"]
    armed.execute_model(SimpleNamespace(total_num_scheduled_tokens=8))
    assert step.calls == ["clear", "finish"]


@pytest.mark.parametrize(
    ("version", "seam"), [(version, seam) for version in RUNNERS for seam in RUNNERS[version][2]]
)
@pytest.mark.parametrize("change", ["other_parameters", "missing"])
def test_a_runner_that_prepares_otherwise_is_refused(version: str, seam: str, change: str) -> None:
    cls, runner, _ = RUNNERS[version]
    value = None if change == "missing" else lambda self, plan: None
    found = "nothing" if change == "missing" else r"\(self, plan\)"
    armed = runner(type("Other", (cls,), {seam: value}))
    with pytest.raises(RuntimeError, match=rf"Other\.{seam}: expected .*, got {found}"):
        check_runner(armed)


@pytest.mark.parametrize(("version", "keyword"), [("v1", "force_attention"), ("v2", "skip_attn")])
def test_a_runner_that_would_swallow_what_a_dummy_batch_is_told_is_refused(
    version: str, keyword: str
) -> None:
    def _dummy_run(
        self: Any, num_tokens: int, *, uniform_decode: bool, skip_eplb: bool, **kwargs: Any
    ) -> None: ...

    cls, runner, _ = RUNNERS[version]
    armed = runner(cls)
    other = type("Other", (type(armed),), {"_dummy_run": _dummy_run})
    armed.__class__ = other
    with pytest.raises(RuntimeError, match=rf"Other\._dummy_run: .* {keyword}, got .*kwargs\)"):
        check_runner(armed)


def params(name: str) -> Any:
    return SimpleNamespace(extra_args={"saif": Placed((), Window(), request_id=name, slots=())})


UNCHECKED = SimpleNamespace(extra_args={"saif": "french"})


def test_v1_has_one_object_a_request_and_a_new_one_when_its_prompt_grows() -> None:
    runner, step = V1(), Step()
    states = {
        name: SimpleNamespace(sampling_params=params(name), num_prompt_tokens=3) for name in "xy"
    }
    runner.requests, runner.input_batch = states, SimpleNamespace(req_ids=["y", "x"])
    runner.query_start_loc, runner.positions = SimpleNamespace(gpu=TABLE), TABLE
    arm_runner(runner, step)  # type: ignore[arg-type]
    plan = SimpleNamespace(total_num_scheduled_tokens=7)
    runner._prepare_inputs(plan, None)
    runner._prepare_inputs(plan, None)
    states["x"].num_prompt_tokens = 5  # one more piece of streaming input
    runner._prepare_inputs(plan, None)
    first, second, third = (call["requests"] for call in step.calls)
    assert [request.steered.request_id for request in first] == ["y", "x"]
    assert first == second
    assert third[0] is first[0] and third[1] is not first[1]
    assert (first[1].prompt_len, third[1].prompt_len) == (3, 5)
    assert step.calls[0]["query_start_loc"] == [0, 1, 2]
    assert step.calls[0]["n_tokens"] == 7
    states["y"] = SimpleNamespace(sampling_params=UNCHECKED, num_prompt_tokens=3)
    with pytest.raises(RuntimeError, match="unchecked"):
        runner._prepare_inputs(plan, None)


def new_request(name: str, sampling_params: Any) -> Any:
    return SimpleNamespace(
        req_id=name,
        sampling_params=sampling_params,
        prompt_token_ids=[1, 2, 3],
        prompt_embeds=None,
    )


def test_v2_knows_its_requests_and_skips_dummy_batches() -> None:
    runner, step = V2(V2State), Step()
    state = runner.model_state
    arm_runner(runner, step)  # type: ignore[arg-type]
    for name in "xy":
        state.add_request(0, new_request(name, params(name)))
    batch = SimpleNamespace(
        req_ids=["y", "x"],
        query_start_loc=TABLE,
        positions=TABLE,
        num_reqs=2,
        num_tokens_after_padding=8,
    )
    state.prepare_inputs(batch, None)
    state.prepare_inputs(SimpleNamespace(req_ids=["dummy_0"]), None)
    state.remove_request("y")
    state.add_request(1, new_request("y", None))
    state.prepare_inputs(batch, None)
    first, second = (call["requests"] for call in step.calls)
    assert [request.steered.request_id for request in first] == ["y", "x"]
    assert first[0].prompt_len == 3
    assert second[1] is first[1] and second[0].steered is None
    with pytest.raises(RuntimeError, match="unchecked"):
        state.add_request(2, new_request("z", UNCHECKED))


@pytest.mark.parametrize("version", RUNNERS)
def test_a_steps_output_names_the_requests_that_are_not_finite(version: str) -> None:
    cls, runner, _ = RUNNERS[version]
    armed, step = runner(cls), Step()
    arm_runner(armed, step)  # type: ignore[arg-type]
    output = SimpleNamespace(sampled=[1])
    assert armed.sample_tokens(output) is output
    step.nonfinite = (3, 7)
    told = armed.sample_tokens(output)
    assert (told.sampled, told.saif_nonfinite) == ([1], (3, 7))
    assert not hasattr(output, "saif_nonfinite")  # vLLM has one for all steps without tokens
    # An output that is waited for says it when it is there, and not before.
    late = armed.sample_tokens(SimpleNamespace(get_output=lambda: output))
    step.nonfinite = (9,)
    assert late.get_output().saif_nonfinite == (9,)
    # Of a pipeline rank before the last nobody hears, so nobody waits for it.
    silent = runner(cls)
    arm_runner(silent, step, answers=False)  # type: ignore[arg-type]
    assert silent.sample_tokens(output) is output
