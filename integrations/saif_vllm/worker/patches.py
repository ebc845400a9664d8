"""The patches of vLLM's worker and of its model runner, V1 and V2.

The worker hooks its model when it has loaded it. The runner fills the batch tables before each
forward. Its methods are patched on the instance, so that it does not matter which class overrides
them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from saif_vllm.config import SteeringConfig
from saif_vllm.request import get_placed
from saif_vllm.seams import (
    LOAD_MODEL,
    V1_DUMMY_RUN,
    V1_EXECUTE,
    V1_PREPARE,
    V1_SAMPLE,
    V2_ADD,
    V2_DUMMY_RUN,
    V2_EXECUTE,
    V2_PREPARE,
    V2_REMOVE,
    V2_SAMPLE,
    wrap,
)
from saif_vllm.worker.attach import attach, refuse_unsupported
from saif_vllm.worker.batch import BatchRequest, BatchTables

_V1_STATE = ("input_batch", "requests", "query_start_loc", "positions", "get_model")


def arm() -> None:
    """Patch the loading of a model in this process; calling it again changes nothing.

    Raises:
        RuntimeError: the seam is not as expected.
    """
    wrap(LOAD_MODEL, _load_model)


def _load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    from vllm.distributed.parallel_state import get_pp_group

    config = SteeringConfig.from_vllm_config(self.vllm_config)
    if config is not None:
        refuse_unsupported(self.vllm_config, config)
    original(self, *args, **kwargs)
    if config is not None:
        check_runner(self.model_runner)  # Before attach(), which runs dummy batches on it.
        self.saif_steering = attach(self, config)
        if self.saif_steering.layers:  # else all hooked layers are other pipeline ranks'
            answers = get_pp_group().is_last_rank
            arm_runner(self.model_runner, self.saif_steering.batch, answers)


def check_runner(runner: Any) -> None:
    """Raise RuntimeError unless all seams of a V1 or V2 model runner are as expected."""
    if hasattr(runner, "model_state"):
        for seam in (V2_ADD, V2_REMOVE, V2_PREPARE):
            seam.check(type(runner.model_state))
        for seam in (V2_EXECUTE, V2_SAMPLE, V2_DUMMY_RUN):
            seam.check(type(runner))
        return
    for seam in (V1_PREPARE, V1_EXECUTE, V1_SAMPLE, V1_DUMMY_RUN):
        seam.check(type(runner))
    for name in _V1_STATE:
        if not hasattr(runner, name):
            raise RuntimeError(f"vLLM seam GPUModelRunner.{name}: expected, got nothing")


def arm_runner(runner: Any, tables: BatchTables, answers: bool = True) -> None:
    """Fill ``tables`` before each forward of a model runner, and count the step afterwards.

    Args:
        runner: one that :func:`check_runner` has accepted.
        tables: of the current batch.
        answers: the runner's output reaches the engine core, as the last pipeline rank's does.
    """
    if hasattr(runner, "model_state"):
        _arm_v2(runner, tables)
    else:
        _arm_v1(runner, tables)
    _arm_steps(runner, tables)
    if answers:
        original = runner.sample_tokens

        def sample_tokens(*args: Any, **kwargs: Any) -> Any:
            return _with_nonfinite(original(*args, **kwargs), tables.proof.nonfinite_of_last_step())

        runner.sample_tokens = sample_tokens


def _arm_v1(runner: Any, tables: BatchTables) -> None:
    original = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = original(scheduler_output, num_scheduled_tokens)
        states = [runner.requests[request_id] for request_id in runner.input_batch.req_ids]
        tables.begin_step(
            requests=[_batch_request(state) for state in states],
            # The device's: under asynchronous scheduling the host's copies are upper bounds.
            query_start_loc=runner.query_start_loc.gpu[: len(states) + 1],
            positions=runner.positions,
            n_tokens=scheduler_output.total_num_scheduled_tokens,
        )
        return result

    runner._prepare_inputs = prepare_inputs


def _batch_request(state: Any) -> BatchRequest:
    """Return the one ``BatchRequest`` of a V1 request, which is kept on the request's state."""
    known: BatchRequest | None = getattr(state, "saif_batch_request", None)
    # A piece of streaming input moves the prompt's end, and so makes a new one.
    if known is None or known.prompt_len != state.num_prompt_tokens:
        steered = get_placed(state.sampling_params)
        known = state.saif_batch_request = BatchRequest(steered, state.num_prompt_tokens)
    return known


def _arm_v2(runner: Any, tables: BatchTables) -> None:
    # From vLLM 0.29 on, this is NewRequestData.prompt_len.
    from vllm.utils import length_from_prompt_token_ids_or_embeds as length

    state = runner.model_state
    original_add, original_remove = state.add_request, state.remove_request
    original_prepare = state.prepare_inputs
    requests: dict[str, BatchRequest] = {}

    def add_request(req_index: int, new_req_data: Any) -> None:
        original_add(req_index, new_req_data)
        requests[new_req_data.req_id] = BatchRequest(
            get_placed(new_req_data.sampling_params),
            length(new_req_data.prompt_token_ids, new_req_data.prompt_embeds),
        )

    def remove_request(req_id: str) -> None:
        original_remove(req_id)
        requests.pop(req_id, None)

    def prepare_inputs(input_batch: Any, req_states: Any) -> Any:
        result = original_prepare(input_batch, req_states)
        # Only a dummy batch has ids that were never added. (If a real batch had one, its step would
        # not be begun, and finish_step() would stop the engine.)
        batch = [found for name in input_batch.req_ids if (found := requests.get(name)) is not None]
        if len(batch) == len(input_batch.req_ids):
            tables.begin_step(
                requests=batch,
                query_start_loc=input_batch.query_start_loc[: input_batch.num_reqs + 1],
                positions=input_batch.positions,
                n_tokens=input_batch.num_tokens_after_padding,
            )
        return result

    state.add_request, state.remove_request = add_request, remove_request
    state.prepare_inputs = prepare_inputs


def _arm_steps(runner: Any, tables: BatchTables) -> None:
    """Count each step after its forward.

    A dummy batch (profiling, graph capture, data parallel) is not steered and not counted.
    """
    original_execute, original_dummy = runner.execute_model, runner._dummy_run
    in_dummy = False  # V2's _dummy_run calls execute_model too.

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = original_execute(scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens and not in_dummy:
            tables.finish_step()
        return result

    def dummy_run(*args: Any, **kwargs: Any) -> Any:
        nonlocal in_dummy
        tables.clear_tokens()
        in_dummy = True
        try:
            return original_dummy(*args, **kwargs)
        finally:
            in_dummy = False

    runner.execute_model, runner._dummy_run = execute_model, dummy_run


def _with_nonfinite(output: Any, nonfinite: Callable[[], tuple[int, ...]]) -> Any:
    """Add the serials of requests with a token that was not finite to a step's output.

    Args:
        output: vLLM's ``ModelRunnerOutput``, or one whose ``get_output`` waits for it.
        nonfinite: waits for the step, and returns the serials.
    """
    if hasattr(output, "get_output"):
        get_output = output.get_output
        output.get_output = lambda: _with_nonfinite(get_output(), nonfinite)
        return output
    found = nonfinite()
    if not found:
        return output
    output = copy.copy(output)  # vLLM shares one empty output between steps
    output.saif_nonfinite = found
    return output
