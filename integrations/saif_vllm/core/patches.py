"""What the plugin does at vLLM's engine core and scheduler, seam by seam."""

from __future__ import annotations

import functools
from typing import Any

from saif_vllm import seams
from saif_vllm.catalog import SetCatalog
from saif_vllm.config import SteeringConfig
from saif_vllm.core.admission import Admission
from saif_vllm.core.nonfinite import end_and_update
from saif_vllm.core.prefix_cache import SteeredHasher
from saif_vllm.core.residency import Residency
from saif_vllm.parsing import parse


def arm() -> None:
    """Patch the engine core in this process; again is harmless.

    Raises:
        RuntimeError: a seam is not as expected.
    """
    # Instances created before this never read a configuration: they count as not steering.
    core = seams.owner(seams.INIT_KV_CACHES)
    if not hasattr(core, "saif"):
        core.saif = None
    seams.wrap(seams.INIT_KV_CACHES, _initialize_kv_caches)
    seams.wrap(seams.PREPROCESS_REQUEST, _preprocess_add_request)
    seams.wrap(seams.ADD_REQUEST, _add_request)
    seams.wrap(seams.ABORT_REQUESTS, _abort_requests)
    seams.wrap(seams.FREE_REQUEST, _free_request)
    seams.wrap(seams.UPDATE, _update_from_output)


def _initialize_kv_caches(original: Any, self: Any, vllm_config: Any) -> Any:
    # The last step of the core's start that involves the workers: the model is loaded, compiled and
    # warmed up afterwards. (Its __init__ is running already when it loads the plugins.)
    config = SteeringConfig.of(vllm_config)
    self.saif = None
    if config is not None:
        _check_scheduler(vllm_config.scheduler_config.get_scheduler_cls())
    result = original(self, vllm_config)
    if config is not None:
        rpc = self.model_executor.collective_rpc
        rpc("saif_check_start")
        catalog = SetCatalog.of(vllm_config, config)
        residency = Residency(catalog, write=lambda *loaded: rpc("saif_write", args=loaded))
        residency.preload()
        self.saif = Admission(catalog, residency, scrub=lambda: rpc("saif_scrub"))
    return result


def _check_scheduler(scheduler: type) -> None:
    """Raise RuntimeError for a scheduler that does not tell when a request ends."""
    if not seams.is_ours(getattr(scheduler, seams.FREE_REQUEST.name, None)):
        raise RuntimeError(
            f"scheduler_cls: expected a subclass of vLLM's Scheduler that leaves "
            f"{seams.FREE_REQUEST.name} alone, which tells when a request ends, got {scheduler}"
        )


def _preprocess_add_request(original: Any, self: Any, request: Any) -> Any:
    if self.saif is None:
        _refuse_steering(request)
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


def _refuse_steering(request: Any) -> None:
    """Raise ValueError for an ``EngineCoreRequest`` that asks an engine to steer that does not."""
    params = request.sampling_params
    parse(None if params is None else params.extra_args, None)


def _add_request(original: Any, self: Any, request: Any, request_wave: int = 0) -> Any:
    if self.saif is None:
        return original(self, request, request_wave)
    if not self.saif.continues(request, self.scheduler.requests.get(request.request_id)):
        # The front end already rejects this; only a front end that is not ours gets here.
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
    return end_and_update(original, self, scheduler_output, model_runner_output)
