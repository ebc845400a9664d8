"""All of vLLM that the plugin relies on: versions, patched functions, called functions, attributes.

They are listed as data, which ``make vllm-matrix`` looks up in the sources of every supported
version. What we put in place of vLLM's functions is in ``patches.py`` of ``frontend``, ``core`` and
``worker``. An engine started without steering is left alone, with one exception: its requests are
rejected if they ask for steering.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from saif_vllm.config import PLUGIN_NAME, refuse_disabled

VLLM_RANGE = ((0, 24), (0, 34))  # >= 0.24, < 0.34
_MARK = "__saif__"
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Seam(NamedTuple):
    """One vLLM function that the plugin patches or calls, and the signature we expect."""

    module: str
    owner: str  # the class; "": the module
    name: str
    parameters: tuple[str, ...]  # the first ones
    keywords: tuple[str, ...] = ()  # passed by name, so they may be anywhere but in **kwargs

    def check(self, owner: Any) -> Callable[..., Any]:
        """Check the function of ``owner``, a class or the module, and return it.

        Raises:
            RuntimeError: there is no such function, or its parameters are others. ``**kwargs`` does
                not count as a keyword, because it would swallow one that was renamed.
        """
        function: Callable[..., Any] | None = getattr(owner, self.name, None)
        path = (
            owner.__name__
            if inspect.ismodule(owner)
            else f"{owner.__module__}.{owner.__qualname__}"
        )
        where = f"{path}.{self.name}"
        if not callable(function):
            raise RuntimeError(f"vLLM seam {where}: expected a function, got nothing")
        found = inspect.signature(function).parameters
        got = tuple(found)
        if got[: len(self.parameters)] != self.parameters:
            raise RuntimeError(
                f"vLLM seam {where}: expected the parameters ({', '.join(self.parameters)}, ...), "
                f"got ({', '.join(got)})"
            )
        named = {name for name, parameter in found.items() if parameter.kind in _BY_NAME}
        if not named.issuperset(self.keywords):
            raise RuntimeError(
                f"vLLM seam {where}: expected the keywords {', '.join(self.keywords)}, "
                f"got ({', '.join(got)})"
            )
        return function


class Attribute(NamedTuple):
    """A field or property of a class, or what one of its methods sets on ``self``."""

    module: str
    owner: str
    name: str


_FRONT, _CORE = "vllm.v1.engine.input_processor", "vllm.v1.engine.core"
_V1, _V2 = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
_V2_STATE = "vllm.v1.worker.gpu.model_states.interface"

# Front end: the configuration, and each request while it can still be answered with HTTP 400.
INIT_FRONT_END = Seam(_FRONT, "InputProcessor", "__init__", ("self", "vllm_config"))
PROCESS_INPUTS = Seam(
    _FRONT,
    "InputProcessor",
    "process_inputs",
    ("self", "request_id", "prompt", "params"),
    ("resumable",),
)
# Front end: the pieces of streaming input. An error that the core answers to a piece does not end
# the session here.
STREAM_INPUT = Seam(
    "vllm.v1.engine.async_llm",
    "AsyncLLM",
    "_add_streaming_input_request",
    ("self", "request_id", "input_stream", "sampling_params"),
)
# API server: our middleware is added first, so it runs innermost, after authentication and metrics.
SERVE_ROUTERS = Seam("vllm.entrypoints.serve", "", "register_vllm_serve_api_routers", ("app",))
# The command that `saif serve` runs.
_SERVE = "vllm.entrypoints.cli.serve"
SERVE_OPTIONS = Seam(_SERVE, "ServeSubcommand", "subparser_init", ("self", "subparsers"))
SERVE_VALIDATE = Seam(_SERVE, "ServeSubcommand", "validate", ("self", "args"))
SERVE_RUN = Seam(_SERVE, "ServeSubcommand", "cmd", ("args",))
# Engine core: its start, and each request's arrival (before its blocks are hashed) and end.
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
# Scheduler: the output of each step. A request of which a token is not finite ends before it.
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
# Model runners, V1 and V2: before and after the forward of each step.
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

# Every Seam above, so the list is complete by construction.
SEAMS = tuple(value for value in dict(globals()).values() if isinstance(value, Seam))
# ARMED is patched in every process, by plugin.arm(). Its patches call CALLED.
ARMED = (
    INIT_FRONT_END,
    PROCESS_INPUTS,
    STREAM_INPUT,
    INIT_KV_CACHES,
    PREPROCESS_REQUEST,
    ADD_REQUEST,
    ABORT_REQUESTS,
    FREE_REQUEST,
    UPDATE,
)
CALLED = (SEND_ERROR, FINISH_REQUESTS, BLOCKS_OF, EVICT_BLOCKS)
# Other functions that the plugin calls, and attributes of vLLM's objects that it reads.
FUNCTIONS = (
    Seam("vllm.forward_context", "", "get_forward_context", ()),
    Seam("vllm.config", "", "set_current_vllm_config", ("vllm_config",)),
    Seam("vllm.distributed.parallel_state", "", "get_pp_group", ()),
    Seam(
        "vllm.distributed.utils", "", "get_pp_indices", ("num_hidden_layers", "pp_rank", "pp_size")
    ),
    Seam("vllm.utils.import_utils", "", "resolve_obj_by_qualname", ("qualname",)),
    Seam("vllm.model_executor.models.utils", "PPMissingLayer", "__init__", ("self",)),
    Seam("vllm.model_executor.layers.attention", "Attention", "forward", ("self",)),
    Seam("vllm.utils.argparse_utils", "FlexibleArgumentParser", "parse_args", ("self", "args")),
    Seam(
        "vllm.utils",
        "",
        "length_from_prompt_token_ids_or_embeds",
        ("prompt_token_ids", "prompt_embeds"),
    ),
)
ATTRIBUTES = (
    Attribute("vllm.exceptions", "VLLMValidationError", "parameter"),
    Attribute("vllm.v1.engine", "EngineCoreRequestType", "ADD"),
    Attribute("vllm.v1.request", "RequestStatus", "FINISHED_ERROR"),
    Attribute("vllm.v1.worker.worker_base", "WorkerBase", "model_runner"),
    Attribute("vllm.config.vllm", "VllmConfig", "additional_config"),
    Attribute("vllm.config.compilation", "CompilationConfig", "static_forward_context"),
    Attribute("vllm.forward_context", "ForwardContext", "no_compile_layers"),
    Attribute("vllm.config.cache", "CacheConfig", "kv_sharing_fast_prefill"),
    Attribute("vllm.config.parallel", "ParallelConfig", "use_ubatching"),
    Attribute("vllm.config.parallel", "ParallelConfig", "prefill_context_parallel_size"),
    Attribute("vllm.config.parallel", "ParallelConfig", "worker_extension_cls"),
    Attribute("vllm.sampling_params", "SamplingParams", "extra_args"),
    Attribute("vllm.v1.engine", "EngineCoreRequest", "resumable"),
    Attribute("vllm.v1.engine.core", "EngineCore", "request_block_hasher"),
    Attribute("vllm.v1.engine.core", "EngineCore", "model_executor"),
    Attribute("vllm.v1.core.block_pool", "BlockPool", "hash_block_size"),
    Attribute("vllm.v1.core.block_pool", "BlockPool", "null_block"),
    Attribute("vllm.v1.core.kv_cache_manager", "KVCacheManager", "block_pool"),
    *(
        Attribute("vllm.v1.core.sched.scheduler", "Scheduler", name)
        for name in ("requests", "kv_cache_manager", "block_size")
    ),
    Attribute("vllm.v1.core.sched.output", "NewRequestData", "num_computed_tokens"),
    *(
        Attribute("vllm.v1.core.sched.output", "CachedRequestData", name)
        for name in ("req_ids", "num_computed_tokens")
    ),
    Attribute("vllm.v1.engine", "EngineCoreOutputs", "outputs"),
    *(
        Attribute("vllm.v1.engine", "EngineCoreOutput", name)
        for name in ("request_id", "new_token_ids", "finish_reason", "events", "trace_headers")
    ),
    *(
        Attribute("vllm.v1.request", "Request", name)
        for name in ("client_index", "get_finished_reason", "take_events", "trace_headers")
    ),
    Attribute("vllm.v1.request", "Request", "block_hashes"),
    Attribute("vllm.v1.request", "Request", "num_prompt_tokens"),
    Attribute("vllm.v1.worker.gpu_input_batch", "CachedRequestState", "num_prompt_tokens"),
    Attribute("vllm.v1.worker.gpu_input_batch", "InputBatch", "req_ids"),
    *(Attribute(_V1, "GPUModelRunner", name) for name in ("query_start_loc", "positions")),
    *(Attribute(_V1, "GPUModelRunner", name) for name in ("requests", "uniform_decode_query_len")),
    Attribute("vllm.v1.core.sched.output", "NewRequestData", "prompt_embeds"),
    *(
        Attribute("vllm.v1.worker.gpu.input_batch", "InputBatch", name)
        for name in ("req_ids", "num_reqs", "num_tokens_after_padding", "query_start_loc")
    ),
    *(Attribute(_V2, "GPUModelRunner", name) for name in ("model_state", "decode_query_len")),
    *(Attribute(_V2, "GPUModelRunner", name) for name in ("max_num_reqs", "max_num_tokens")),
    *(Attribute(runner, "GPUModelRunner", "kv_caches") for runner in (_V1, _V2)),
)


def check_version() -> None:
    """Raise RuntimeError unless the installed vLLM is within :data:`VLLM_RANGE`."""
    from vllm.version import __version__, __version_tuple__

    lowest, beyond = VLLM_RANGE
    if not lowest <= tuple(__version_tuple__[:2]) < beyond:
        raise RuntimeError(
            f"steering supports vLLM >= {lowest[0]}.{lowest[1]}, < {beyond[0]}.{beyond[1]}, "
            f"got {__version__}"
        )


def check_seams() -> None:
    """Check that this process can be armed.

    Raises:
        RuntimeError: this vLLM is outside the supported range, a seam is not as expected, or
            ``SAIF_DISABLE`` is set.
    """
    refuse_disabled()
    check_version()
    for seam in (*ARMED, *CALLED):
        seam.check(owner(seam))


def require_armed() -> None:
    """Raise RuntimeError unless vLLM has loaded the plugin in this process; the message says why.

    All processes load plugins by the same rule: a plugin that is missing in a worker is missing in
    the engine core too.
    """
    refuse_disabled()
    _check_plugins()
    check_seams()
    if not all(is_ours(getattr(owner(seam), seam.name)) for seam in ARMED):
        raise RuntimeError(
            f"vLLM has not loaded the plugin {PLUGIN_NAME!r} in this process; is saif-fast "
            "installed with its entry points?"
        )


def _check_plugins() -> None:
    allowed = os.environ.get("VLLM_PLUGINS", PLUGIN_NAME)
    names = allowed.split(",")  # as vLLM does, so white space is a part of the name
    if PLUGIN_NAME in names:
        return
    if PLUGIN_NAME in map(str.strip, names):
        reason = "without white space, which vLLM takes for a part of the name"
    else:
        reason = "or to be unset, since the engine was started with steering"
    raise RuntimeError(
        f"VLLM_PLUGINS: expected it to name {PLUGIN_NAME!r} {reason}, got {allowed!r}"
    )


def owner(seam: Seam) -> Any:
    """Return the class or the module that has the function, imported."""
    module = importlib.import_module(seam.module)
    return getattr(module, seam.owner) if seam.owner else module


def is_ours(function: Any) -> bool:
    """Return whether :func:`wrap` has put this function in place."""
    return getattr(function, _MARK, False)


def wrap(seam: Seam, around: Callable[..., Any]) -> None:
    """Call ``around(original, *args, **kwargs)`` in place of vLLM's function.

    A function that is wrapped already is left as it is.

    Raises:
        RuntimeError: the function is not as the seam expects.
    """
    where = owner(seam)
    if is_ours(getattr(where, seam.name, None)):
        return
    original = seam.check(where)

    @functools.wraps(original)
    def ours(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(ours, _MARK, True)
    setattr(where, seam.name, ours)
