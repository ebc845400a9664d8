"""The patches of vLLM's front end and API server, one function per seam."""

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
    request_errors,
    with_plain_values,
)
from saif_vllm.parsing import parse_extra_args
from saif_vllm.request import put_found


def arm() -> None:
    """Patch the front end in this process; calling it again changes nothing.

    Raises:
        RuntimeError: a seam is not as expected.
    """
    # Instances created before arming have no catalog; give the class a default, so that they count
    # as not steering.
    front_end = seams.owner(seams.INIT_FRONT_END)
    if not hasattr(front_end, "saif_catalog"):
        front_end.saif_catalog = None
    seams.wrap(seams.INIT_FRONT_END, _init_front_end)
    seams.wrap(seams.PROCESS_INPUTS, _process_inputs)
    seams.wrap(seams.STREAM_INPUT, _add_streaming_input_request)


def arm_server() -> None:
    """Put the guard of HTTP requests into every API server of this process.

    Raises:
        RuntimeError: the seam is not as expected.
    """
    seams.wrap(seams.SERVE_ROUTERS, _register_routers)


def _init_front_end(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    config = SteeringConfig.from_vllm_config(vllm_config)
    self.saif_catalog = None
    if config is not None:
        seams.require_armed()
        _check_extension(vllm_config.parallel_config.worker_extension_cls)
        self.saif_catalog = SetCatalog.from_vllm_config(vllm_config, config)
        # Called here, because only a server has the modules that this imports, and a server makes
        # its front end before its application.
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
    # Added first, our middleware runs innermost: after authentication, and inside the metrics, so
    # that these count what it refuses.
    app.add_middleware(SteeringGuard)
    return original(app)


def _process_inputs(
    original: Any, self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    params = with_plain_values(params)
    # A piece of streaming input has been checked by checked_pieces().
    piece = kwargs.get("resumable", False)
    with request_errors():
        if piece:
            asked = parse_extra_args(params.extra_args, self.saif_catalog)
        else:
            asked = check_parameters(params, self.saif_catalog)
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if asked is not None:
        put_found(request.sampling_params, [offered.found for offered, _ in asked.sets])
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
    catalog = self.input_processor.saif_catalog
    sampling_params = with_plain_values(sampling_params)
    pieces = checked_pieces(input_stream, sampling_params, catalog)
    with nullcontext() if catalog is None else catalog.one_request():
        return await original(self, request_id, pieces, sampling_params, *args, **kwargs)
