"""What the plugin does at vLLM's front end and server, seam by seam."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from saif_vllm import seams
from saif_vllm.catalog import SetCatalog
from saif_vllm.config import EXTENSION, SteeringConfig
from saif_vllm.frontend.http import SteeringGuard
from saif_vllm.frontend.metrics import count_request
from saif_vllm.frontend.validation import (
    check_parameters,
    checked_pieces,
    refused,
    with_plain_values,
)
from saif_vllm.parsing import parse
from saif_vllm.request import pin


def arm() -> None:
    """Patch the front end in this process; again is harmless.

    Raises:
        RuntimeError: a seam is not as expected.
    """
    # Instances created before this never read a configuration: they count as not steering.
    front_end = seams.owner(seams.INIT_FRONT_END)
    if not hasattr(front_end, "saif"):
        front_end.saif = None
    seams.wrap(seams.INIT_FRONT_END, _init_front_end)
    seams.wrap(seams.PROCESS_INPUTS, _process_inputs)
    seams.wrap(seams.STREAM_INPUT, _add_streaming_input_request)


def arm_server() -> None:
    """Put the guard of HTTP requests into every server of this process; again is harmless.

    Raises:
        RuntimeError: the seam is not as expected.
    """
    seams.wrap(seams.SERVE_ROUTERS, _register_routers)


def _init_front_end(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    config = SteeringConfig.of(vllm_config)
    self.saif = None
    if config is not None:
        seams.require_armed()
        _check_extension(vllm_config.parallel_config.worker_extension_cls)
        self.saif = SetCatalog.of(vllm_config, config)
        # Not before: only a server has the modules that this imports, and its front end is made
        # before its application.
        arm_server()
    original(self, vllm_config, *args, **kwargs)


def _check_extension(name: str) -> None:
    """Raise ValueError unless the worker extension of this name is ours, or a subclass of it.

    Ours is known by its name: importing it would arm the front end's process as a worker.
    """
    if name == EXTENSION:
        return
    if name:
        from vllm.utils.import_utils import resolve_obj_by_qualname

        bases = resolve_obj_by_qualname(name).__mro__
        if EXTENSION in (f"{base.__module__}.{base.__qualname__}" for base in bases):
            return
    raise ValueError(f"worker_extension_cls: expected {EXTENSION} or a subclass, got {name!r}")


def _register_routers(original: Any, app: Any) -> Any:
    # The innermost: the API key is checked before, and metrics count what is refused.
    app.add_middleware(SteeringGuard)
    return original(app)


def _process_inputs(
    original: Any, self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
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
        pin(request.sampling_params, [offered.found for offered, _ in asked.sets])
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
    catalog = self.input_processor.saif
    sampling_params = with_plain_values(sampling_params)
    pieces = checked_pieces(input_stream, sampling_params, catalog)
    with nullcontext() if catalog is None else catalog.one_request():
        return await original(self, request_id, pieces, sampling_params, *args, **kwargs)
