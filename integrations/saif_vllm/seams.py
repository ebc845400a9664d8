"""Every place where vLLM is patched, checked against the signatures that we rely on.

``SEAMS`` lists them as data; what we do there is in the modules that this one calls. Classes are
patched in the front end, the engine core (:func:`arm`) and the worker (:func:`arm_worker`); a model
runner's methods on the instance (``runners.py``), so that it does not matter which class overrides
them. Nothing here does anything for an engine that was not asked to steer, except that its requests
may not ask either.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from saif_vllm.config import PLUGIN_NAME, SteeringConfig, check_extension, refuse_disabled
from saif_vllm.seam import Seam, check_version

VLLM_RANGE = ((0, 24), (0, 34))  # >= 0.24, < 0.34
_MARK = "__saif__"

_FRONT, _CORE = "vllm.v1.engine.input_processor", "vllm.v1.engine.core"
_V1, _V2 = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
_V2_STATE = "vllm.v1.worker.gpu.model_states.interface"

# Front end: the configuration, and each request while it can still be refused with HTTP 400.
INIT_FRONT_END = Seam(_FRONT, "InputProcessor", "__init__", ("self", "vllm_config"))
PROCESS_INPUTS = Seam(
    _FRONT,
    "InputProcessor",
    "process_inputs",
    ("self", "request_id", "prompt", "params"),
    ("resumable",),
)
# And the pieces of streaming input: what a core answers to one of them does not end a session here.
STREAM_INPUT = Seam(
    "vllm.v1.engine.async_llm",
    "AsyncLLM",
    "_add_streaming_input_request",
    ("self", "request_id", "input_stream", "sampling_params"),
)
# Server: its application, before any other middleware is added, which so is further out.
SERVE_ROUTERS = Seam("vllm.entrypoints.serve", "", "register_vllm_serve_api_routers", ("app",))
# The command that `saif serve` runs.
_SERVE = "vllm.entrypoints.cli.serve"
SERVE_OPTIONS = Seam(_SERVE, "ServeSubcommand", "subparser_init", ("self", "subparsers"))
SERVE_VALIDATE = Seam(_SERVE, "ServeSubcommand", "validate", ("self", "args"))
SERVE_RUN = Seam(_SERVE, "ServeSubcommand", "cmd", ("args",))
# Engine core: its start, and each request's way in (before block hashes are made) and end.
INIT_KV_CACHES = Seam(_CORE, "EngineCore", "_initialize_kv_caches", ("self", "vllm_config"))
PREPROCESS_REQUEST = Seam(_CORE, "EngineCore", "preprocess_add_request", ("self", "request"))
ADD_REQUEST = Seam(_CORE, "EngineCore", "add_request", ("self", "request", "request_wave"))
ABORT_REQUESTS = Seam(_CORE, "EngineCore", "abort_requests", ("self", "request_ids"))
SEND_ERROR = Seam(
    _CORE,
    "EngineCoreProc",
    "_send_error_outputs_to_client",
    ("self", "req_ids", "client_index"),
)
_SCHEDULER = "vllm.v1.core.sched.scheduler"
FREE_REQUEST = Seam(_SCHEDULER, "Scheduler", "_free_request", ("self", "request"))
# And what a step made of the requests, some of which end here with an error.
UPDATE = Seam(
    _SCHEDULER,
    "Scheduler",
    "update_from_output",
    ("self", "scheduler_output", "model_runner_output"),
)
FINISH_REQUESTS = Seam(
    _SCHEDULER, "Scheduler", "finish_requests", ("self", "request_ids", "finished_status")
)
_KV_CACHE = "vllm.v1.core.kv_cache_manager"
BLOCKS_OF = Seam(_KV_CACHE, "KVCacheManager", "get_block_ids", ("self", "request_id"))
EVICT_BLOCKS = Seam(_KV_CACHE, "KVCacheManager", "evict_blocks", ("self", "block_ids"))
# Worker: the model.
LOAD_MODEL = Seam("vllm.v1.worker.gpu_worker", "Worker", "load_model", ("self",))
# Model runners, V1 and V2: each step, before its forward and after it.
V1_PREPARE = Seam(
    _V1, "GPUModelRunner", "_prepare_inputs", ("self", "scheduler_output", "num_scheduled_tokens")
)
V1_SAMPLE = Seam(_V1, "GPUModelRunner", "sample_tokens", ("self", "grammar_output"))
V1_EXECUTE = Seam(_V1, "GPUModelRunner", "execute_model", ("self", "scheduler_output"))
_DUMMY = ("uniform_decode", "skip_eplb", "is_profile")
V1_DUMMY_RUN = Seam(
    _V1, "GPUModelRunner", "_dummy_run", ("self", "num_tokens"), (*_DUMMY, "force_attention")
)
V2_ADD = Seam(_V2_STATE, "ModelState", "add_request", ("self", "req_index", "new_req_data"))
V2_REMOVE = Seam(_V2_STATE, "ModelState", "remove_request", ("self", "req_id"))
V2_PREPARE = Seam(_V2_STATE, "ModelState", "prepare_inputs", ("self", "input_batch", "req_states"))
V2_SAMPLE = Seam(_V2, "GPUModelRunner", "sample_tokens", ("self", "grammar_output"))
V2_EXECUTE = Seam(_V2, "GPUModelRunner", "execute_model", ("self", "scheduler_output"))
V2_DUMMY_RUN = Seam(
    _V2, "GPUModelRunner", "_dummy_run", ("self", "num_tokens"), (*_DUMMY, "skip_attn")
)

SEAMS = tuple(value for value in dict(globals()).values() if isinstance(value, Seam))


def arm() -> None:
    """Patch the front end and the engine core in this process, or nothing; again is harmless.

    Raises:
        RuntimeError: as :func:`check`.
    """
    check()
    for owner in (_owner(INIT_FRONT_END), _owner(INIT_KV_CACHES)):
        # Those that were made before this have never read a configuration: they do not steer.
        if not hasattr(owner, "saif"):
            owner.saif = None
    for seam, around in _AROUND.items():
        _wrap(seam, around)


def check() -> None:
    """Whether this process can be armed.

    Raises:
        RuntimeError: this vLLM is outside the supported range, a seam is not as expected, or
            ``SAIF_DISABLE`` is set.
    """
    refuse_disabled()
    check_version(*VLLM_RANGE)
    for seam in (*_AROUND, SEND_ERROR, FINISH_REQUESTS, BLOCKS_OF, EVICT_BLOCKS):
        seam.check(_owner(seam))


def arm_server() -> None:
    """Put the guard of HTTP requests into every server of this process; again is harmless."""
    _wrap(SERVE_ROUTERS, _register_routers)


def serve_command() -> Any:
    """vLLM's ``ServeSubcommand``.

    Raises:
        RuntimeError: it is not as expected.
    """
    for seam in (SERVE_OPTIONS, SERVE_VALIDATE, SERVE_RUN):
        seam.check(_owner(seam))
    return _owner(SERVE_RUN)()


def arm_worker() -> None:
    """Patch the loading of a model in this process; again is harmless."""
    _wrap(LOAD_MODEL, _load_model)


def require_armed() -> None:
    """Raise RuntimeError unless vLLM has loaded the plugin in this process, and say why.

    The engine core and the front end load plugins by the same rule, so a plugin that is missing
    here is missing there.
    """
    refuse_disabled()
    _check_plugins()
    check()
    if not all(_is_ours(getattr(_owner(seam), seam.name)) for seam in _AROUND):
        raise RuntimeError(
            f"vLLM has not loaded the plugin {PLUGIN_NAME!r} in this process; is saif-fast "
            "installed with its entry points?"
        )


def _check_plugins() -> None:
    allowed = os.environ.get("VLLM_PLUGINS", PLUGIN_NAME)
    names = allowed.split(",")  # as vLLM does
    if PLUGIN_NAME in names:
        return
    if PLUGIN_NAME in map(str.strip, names):
        reason = "without white space, which vLLM takes for a part of the name"
    else:
        reason = "or to be unset, since the engine was started with steering"
    raise RuntimeError(
        f"VLLM_PLUGINS: expected it to name {PLUGIN_NAME!r} {reason}, got {allowed!r}"
    )


def _owner(seam: Seam) -> Any:
    module = importlib.import_module(seam.module)
    return getattr(module, seam.owner) if seam.owner else module


def _is_ours(function: Any) -> bool:
    return getattr(function, _MARK, False)


def _wrap(seam: Seam, around: Callable[..., Any]) -> None:
    owner = _owner(seam)
    if _is_ours(getattr(owner, seam.name, None)):
        return
    original = seam.check(owner)

    @functools.wraps(original)
    def ours(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(ours, _MARK, True)
    setattr(owner, seam.name, ours)


def _init_front_end(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    from saif_vllm.catalog import SetCatalog

    config = SteeringConfig.of(vllm_config)
    self.saif = None
    if config is not None:
        require_armed()
        check_extension(vllm_config.parallel_config.worker_extension_cls)
        self.saif = SetCatalog.of(vllm_config, config)
        # Not before: only a server has the modules that this imports, and its front end is made
        # before its application.
        arm_server()
    original(self, vllm_config, *args, **kwargs)


def _register_routers(original: Any, app: Any) -> Any:
    from saif_vllm.http import SteeringGuard

    # The innermost: the API key is checked before, and metrics count what is refused.
    app.add_middleware(SteeringGuard)
    return original(app)


def _process_inputs(
    original: Any, self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    from saif_vllm.metrics import count_request
    from saif_vllm.request import parse, pin
    from saif_vllm.validation import check_parameters, refused, with_plain_values

    params = with_plain_values(params)
    # A piece of streaming input has been checked as such.
    piece = kwargs.get("resumable", False)
    with refused():
        if piece:
            asked = parse(params.extra_args, self.saif)
        else:
            asked = check_parameters(params, self.saif)
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if asked is not None:
        pin(request.sampling_params, asked)
        if not piece:
            count_request(asked)
    return request


async def _add_streaming_input_request(
    original: Any,
    self: Any,
    request_id: str,
    input_stream: Any,
    sampling_params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    from saif_vllm.validation import checked_pieces, with_plain_values

    catalog = self.input_processor.saif
    sampling_params = with_plain_values(sampling_params)
    pieces = checked_pieces(input_stream, sampling_params, catalog)
    with nullcontext() if catalog is None else catalog.one_request():
        return await original(self, request_id, pieces, sampling_params, *args, **kwargs)


def _initialize_kv_caches(original: Any, self: Any, vllm_config: Any) -> Any:
    # The last step of the core's start that involves the workers: the model is loaded, compiled and
    # warmed up afterwards. (Its __init__ is running already when it loads the plugins.)
    from saif_vllm.admission import Admission
    from saif_vllm.catalog import SetCatalog

    config = SteeringConfig.of(vllm_config)
    self.saif = None
    if config is not None:
        scheduler = vllm_config.scheduler_config.get_scheduler_cls()
        if not _is_ours(getattr(scheduler, FREE_REQUEST.name, None)):
            raise RuntimeError(
                f"scheduler_cls: expected a subclass of vLLM's Scheduler that leaves "
                f"{FREE_REQUEST.name} alone, which tells when a request ends, got {scheduler}"
            )
    result = original(self, vllm_config)
    if config is not None:
        rpc = self.model_executor.collective_rpc
        rpc("saif_check_start")
        self.saif = Admission(
            SetCatalog.of(vllm_config, config),
            write=lambda *loaded: rpc("saif_write", args=loaded),
            scrub=lambda: rpc("saif_scrub"),
        )
        self.saif.preload()
    return result


def _preprocess_add_request(original: Any, self: Any, request: Any) -> Any:
    from saif_vllm.prefix_cache import SteeredHasher
    from saif_vllm.validation import refuse_steering

    if self.saif is None:
        refuse_steering(request)
        return original(self, request)
    hasher = self.request_block_hasher
    if hasher is not None and not isinstance(hasher, SteeredHasher):
        # The scheduler has it as an attribute from vLLM 0.26 on.
        block_size = self.scheduler.kv_cache_manager.block_pool.hash_block_size
        self.request_block_hasher = SteeredHasher(hasher, block_size)
    self.scheduler.saif = self.saif  # it ends requests whose tokens are not finite
    admitted = self.saif.admit(request)
    result = original(self, request)
    result[0].saif = admitted
    if request.resumable and admitted is not None:
        self.saif.begin_session(admitted)
    return result


def _add_request(original: Any, self: Any, request: Any, request_wave: int = 0) -> Any:
    if self.saif is None:
        return original(self, request, request_wave)
    if not self.saif.continues(request, self.scheduler.requests.get(request.request_id)):
        # What is refused in the front end.
        self.abort_requests([request.request_id])
        self._send_error_outputs_to_client([request.request_id], request.client_index)
        return None

    def again() -> None:
        if hasattr(self, "input_queue"):
            from vllm.v1.engine import EngineCoreRequestType

            self.input_queue.put_nowait((EngineCoreRequestType.ADD, (request, request_wave)))
        else:  # front end and core in one process
            _add_request(original, self, request, request_wave)

    self.saif.add(request, functools.partial(original, self, request, request_wave), again)
    return None


def _abort_requests(original: Any, self: Any, request_ids: Any) -> Any:
    if self.saif is not None:
        self.saif.abort(request_ids)
    return original(self, request_ids)


def _free_request(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, request, *args, **kwargs)
    admitted = getattr(request, "saif", None)
    if admitted is not None:
        admitted.release()
    return result


def _update_from_output(
    original: Any, self: Any, scheduler_output: Any, model_runner_output: Any
) -> Any:
    if not hasattr(model_runner_output, "saif_nonfinite"):
        return original(self, scheduler_output, model_runner_output)
    from saif_vllm.nonfinite import end_and_update

    return end_and_update(original, self, scheduler_output, model_runner_output)


def _load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    from vllm.distributed import get_pp_group

    from saif_vllm.attach import attach, refuse_unsupported
    from saif_vllm.runners import arm_runner, check_runner

    config = SteeringConfig.of(self.vllm_config)
    if config is not None:
        refuse_unsupported(self.vllm_config, config)
    original(self, *args, **kwargs)
    if config is not None:
        check_runner(self.model_runner)  # which attach() runs dummy batches on
        self.saif_steering = attach(self, config)
        if self.saif_steering.layers:  # not those of other pipeline ranks alone
            answers = get_pp_group().is_last_rank
            arm_runner(self.model_runner, self.saif_steering.step, answers)


# What each function of vLLM is wrapped in.
_AROUND: dict[Seam, Callable[..., Any]] = {
    INIT_FRONT_END: _init_front_end,
    PROCESS_INPUTS: _process_inputs,
    STREAM_INPUT: _add_streaming_input_request,
    INIT_KV_CACHES: _initialize_kv_caches,
    PREPROCESS_REQUEST: _preprocess_add_request,
    ADD_REQUEST: _add_request,
    ABORT_REQUESTS: _abort_requests,
    FREE_REQUEST: _free_request,
    UPDATE: _update_from_output,
}
