"""A model runner is armed where it is as expected, and refused where it is not: without vLLM."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from saif_vllm.seams import arm_runner


class V1:
    input_batch = requests = query_start_loc = positions = get_model = None

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> None: ...


class V2State:
    def add_request(self, req_index: int, new_req_data: Any) -> None: ...

    def remove_request(self, req_id: str) -> None: ...

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> None: ...


def v2(state: type[Any]) -> Any:
    return SimpleNamespace(model_state=state())


RUNNERS: dict[str, tuple[type[Any], Callable[[type[Any]], Any], list[str]]] = {
    "v1": (V1, lambda cls: cls(), ["_prepare_inputs"]),
    "v2": (V2State, v2, ["add_request", "remove_request", "prepare_inputs"]),
}


@pytest.mark.parametrize("version", RUNNERS)
def test_a_runner_as_expected_is_armed(version: str) -> None:
    cls, runner, seams = RUNNERS[version]
    armed = runner(cls)
    arm_runner(armed, SimpleNamespace())
    owner = getattr(armed, "model_state", armed)
    # What is called from now on is ours, on this runner only.
    assert set(vars(owner)) >= {seams[-1]}


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
        arm_runner(armed, SimpleNamespace())
