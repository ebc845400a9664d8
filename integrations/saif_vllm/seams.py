"""Every place where vLLM is patched, checked against the signatures that we rely on.

Classes are patched in the front end, the engine core (:func:`arm`) and the worker
(:func:`arm_worker`); a model runner's methods on the instance (:func:`arm_runner`), so that it does
not matter which class overrides them. Nothing here does anything for an engine that was not asked
to steer, except that its requests may not ask either.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from saif_vllm.config import EXTENSION, PLUGIN_NAME, SteeringConfig

VLLM_RANGE = ((0, 32), (0, 33))  # >= 0.32, < 0.33
_MARK = "__saif__"


def arm() -> None:
    """Patch the front end and the engine core in this process; again is harmless.

    Raises:
        RuntimeError: this vLLM is outside the supported range, or a seam is not as expected.
    """
    _check_version()
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor

    _wrap(InputProcessor, "__init__", ("self", "vllm_config"), _init_front_end)
    for owner in (InputProcessor, EngineCore):
        # Those that were made before this have never read a configuration: they do not steer.
        owner.saif_config = owner.saif_offered = None
    inputs = ("self", "request_id", "prompt", "params")
    _wrap(InputProcessor, "process_inputs", inputs, _process_inputs)
    _wrap(EngineCore, "_initialize_kv_caches", ("self", "vllm_config"), _initialize_kv_caches)
    _wrap(EngineCore, "preprocess_add_request", ("self", "request"), _preprocess_add_request)


def arm_worker() -> None:
    """Patch the loading of a model in this process; again is harmless."""
    from vllm.v1.worker.gpu_worker import Worker

    _wrap(Worker, "load_model", ("self",), _load_model)


def arm_server() -> None:
    """Put the guard of HTTP requests into every server of this process; again is harmless.

    Raises:
        RuntimeError: the seam is not as expected.
    """
    # What vLLM's build_app calls first, and imports only then.
    from vllm.entrypoints import serve

    _wrap(serve, "register_vllm_serve_api_routers", ("app",), _register_routers)


def require_armed() -> None:
    """Raise RuntimeError unless vLLM has loaded the plugin in this process.

    The engine core and the front end load plugins by the same rule, so a plugin that is missing
    here is missing there.
    """
    from vllm.v1.engine.core import EngineCore

    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN_NAME not in allowed.split(","):
        raise RuntimeError(
            f"VLLM_PLUGINS: expected it to name {PLUGIN_NAME!r} or to be unset, since the engine "
            f"was started with steering, got {allowed!r}"
        )
    if not _is_ours(EngineCore.preprocess_add_request):
        raise RuntimeError(
            f"vLLM has not loaded the plugin {PLUGIN_NAME!r} in this process; is saif-fast "
            "installed with its entry points?"
        )


def _check_version() -> None:
    from vllm.version import __version__, __version_tuple__

    lowest, beyond = VLLM_RANGE
    if not lowest <= tuple(__version_tuple__[:2]) < beyond:
        raise RuntimeError(
            f"steering supports vLLM >= {lowest[0]}.{lowest[1]}, < {beyond[0]}.{beyond[1]}, "
            f"got {__version__}"
        )


def _check_signature(owner: Any, name: str, parameters: Sequence[str]) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(owner, name, None)
    module = inspect.ismodule(owner)
    where = f"{owner.__name__ if module else f'{owner.__module__}.{owner.__qualname__}'}.{name}"
    if not callable(function):
        raise RuntimeError(f"vLLM seam {where}: expected a method, got nothing")
    got = list(inspect.signature(function).parameters)
    if got[: len(parameters)] != list(parameters):
        raise RuntimeError(
            f"vLLM seam {where}: expected the parameters ({', '.join(parameters)}, ...), "
            f"got ({', '.join(got)})"
        )
    return function


def _is_ours(function: Any) -> bool:
    return getattr(function, _MARK, False)


def _wrap(
    owner: type[Any] | ModuleType, name: str, parameters: Sequence[str], around: Callable[..., Any]
) -> None:
    if _is_ours(getattr(owner, name, None)):
        return
    original = _check_signature(owner, name, parameters)

    @functools.wraps(original)
    def seam(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(seam, _MARK, True)
    setattr(owner, name, seam)


def _init_front_end(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    from saif_vllm.sets import OfferedSets

    config = SteeringConfig.of(vllm_config)
    self.saif_config, self.saif_offered = config, None
    if config is not None:
        require_armed()
        _check_extension(vllm_config.parallel_config.worker_extension_cls)
        self.saif_offered = OfferedSets.load(vllm_config, config)
        arm_server()  # now: vLLM makes the front end before the application
    original(self, vllm_config, *args, **kwargs)


def _register_routers(original: Any, app: Any) -> None:
    from saif_vllm.http import SteeringGuard

    # The first one added is the innermost: the API key is checked before, and metrics count it.
    app.add_middleware(SteeringGuard)
    original(app)


def _check_extension(name: str) -> None:
    if name == EXTENSION:
        return
    if name:
        from vllm.utils.import_utils import resolve_obj_by_qualname

        from saif_vllm.worker import SaifWorkerExtension

        if issubclass(resolve_obj_by_qualname(name), SaifWorkerExtension):
            return
    raise ValueError(f"worker_extension_cls: expected {EXTENSION} or a subclass, got {name!r}")


def _process_inputs(
    original: Any, self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    from vllm.sampling_params import SamplingParams

    from saif_vllm.errors import SteeringRequestError
    from saif_vllm.request import refuse_streaming_input, resolve, with_steering
    from saif_vllm.scope import PROMPT_LOGPROBS, check_scope

    sampling = isinstance(params, SamplingParams)
    extra_args = params.extra_args if sampling else getattr(params, "extra_kwargs", None)
    try:
        steered = resolve(extra_args, self.saif_offered, self.saif_config)
        if steered is not None and sampling:
            scores = any(getattr(params, name, None) is not None for name in PROMPT_LOGPROBS)
            check_scope(steered, self.saif_offered, scores)
    except ValueError as error:
        raise SteeringRequestError(str(error)) from error
    if steered is not None and not sampling:
        raise SteeringRequestError("saif: expected a generation request, got a pooling request")
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if steered is not None:
        try:
            refuse_streaming_input(request)
        except ValueError as error:
            raise SteeringRequestError(str(error)) from error
        # The engine's copy may share the dictionary with the caller's: a new one.
        request.sampling_params.extra_args = with_steering(extra_args, steered)
    return request


def _initialize_kv_caches(original: Any, self: Any, vllm_config: Any) -> Any:
    # The last step of the core's start that involves the workers: the model is loaded, compiled and
    # warmed up afterwards. (Its __init__ is running already when it loads the plugins.)
    from saif_vllm.sets import OfferedSets

    config = SteeringConfig.of(vllm_config)
    self.saif_config, self.saif_offered = config, None
    if config is not None:
        self.saif_offered = OfferedSets.load(vllm_config, config)
    result = original(self, vllm_config)
    if config is not None:
        for loaded in self.model_executor.collective_rpc("saif_check_start"):
            if loaded != sorted(self.saif_offered.by_hash):
                raise RuntimeError("the set directory was changed while the engine started")
    return result


def _preprocess_add_request(original: Any, self: Any, request: Any) -> Any:
    from saif_vllm.request import admit

    admit(request, self.saif_offered, self.saif_config)
    return original(self, request)


def _load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    from saif_vllm.attach import attach, refuse_unsupported

    config = SteeringConfig.of(self.vllm_config)
    if config is not None:
        refuse_unsupported(self.vllm_config)
    original(self, *args, **kwargs)
    if config is not None:
        self.saif_steering = attach(self, config)
        arm_runner(self.model_runner, self.saif_steering.step)


def arm_runner(runner: Any, step: Any) -> None:
    """Fill ``step`` before every forward of a V1 or V2 model runner.

    Raises:
        RuntimeError: a seam is not as expected.
    """
    if hasattr(runner, "model_state"):
        _arm_v2(runner.model_state, step)
    else:
        _arm_v1(runner, step)


def _arm_v1(runner: Any, step: Any) -> None:
    parameters = ("self", "scheduler_output", "num_scheduled_tokens")
    _check_signature(type(runner), "_prepare_inputs", parameters)
    for name in ("input_batch", "requests", "query_start_loc", "positions", "get_model"):
        if not hasattr(runner, name):
            raise RuntimeError(f"vLLM seam GPUModelRunner.{name}: expected, got nothing")
    original = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = original(scheduler_output, num_scheduled_tokens)
        states = [runner.requests[request_id] for request_id in runner.input_batch.req_ids]
        step.begin_step(
            batch=[
                getattr(state, "saif_request", None) or _batch_request(state) for state in states
            ],
            # On the device: the host's copies are upper bounds under asynchronous scheduling.
            query_start_loc=runner.query_start_loc.gpu[: len(states) + 1],
            positions=runner.positions,
            n_tokens=scheduler_output.total_num_scheduled_tokens,
        )
        return result

    runner._prepare_inputs = prepare_inputs


def _batch_request(state: Any) -> Any:
    """The one ``BatchRequest`` of a V1 request, left on its state, which lives as long."""
    from saif_vllm.tables import BatchRequest

    state.saif_request = BatchRequest(
        state.req_id, _extra_args(state.sampling_params), state.num_prompt_tokens
    )
    return state.saif_request


def _arm_v2(state: Any, step: Any) -> None:
    from saif_vllm.tables import BatchRequest

    cls = type(state)
    _check_signature(cls, "add_request", ("self", "req_index", "new_req_data"))
    _check_signature(cls, "remove_request", ("self", "req_id"))
    _check_signature(cls, "prepare_inputs", ("self", "input_batch", "req_states"))
    original_add, original_remove = state.add_request, state.remove_request
    original_prepare = state.prepare_inputs
    requests: dict[str, BatchRequest] = {}

    def add_request(req_index: int, new_req_data: Any) -> None:
        original_add(req_index, new_req_data)
        requests[new_req_data.req_id] = BatchRequest(
            new_req_data.req_id,
            _extra_args(new_req_data.sampling_params),
            new_req_data.prompt_len,
        )

    def remove_request(req_id: str) -> None:
        original_remove(req_id)
        requests.pop(req_id, None)

    def prepare_inputs(input_batch: Any, req_states: Any) -> Any:
        result = original_prepare(input_batch, req_states)
        step.begin_step(
            batch=[
                # Only a dummy batch has ids that the runner does not know: unsteered.
                requests[name]
                if name in req_states.req_id_to_index
                else BatchRequest(name, None, 0)
                for name in input_batch.req_ids
            ],
            query_start_loc=input_batch.query_start_loc[: input_batch.num_reqs + 1],
            positions=input_batch.positions,
            n_tokens=input_batch.num_tokens_after_padding,
        )
        return result

    state.add_request, state.remove_request = add_request, remove_request
    state.prepare_inputs = prepare_inputs


def _extra_args(params: Any) -> Any:
    return None if params is None else params.extra_args
