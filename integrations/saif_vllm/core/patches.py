"""The patches of vLLM's engine core and scheduler, one function per seam."""

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
from saif_vllm.parsing import parse_extra_args


def arm() -> None:
    """Patch the engine core in this process; calling it again changes nothing.

    Raises:
        RuntimeError: a seam is not as expected.
    """
    # Instances created before arming have no admission; give the class a default, so that they
    # count as not steering.
    core = seams.owner(seams.INIT_KV_CACHES)
    if not hasattr(core, "saif_admission"):
        core.saif_admission = None
    seams.wrap(seams.INIT_KV_CACHES, _initialize_kv_caches)
    seams.wrap(seams.PREPROCESS_REQUEST, _preprocess_add_request)
    seams.wrap(seams.ADD_REQUEST, _add_request)
    seams.wrap(seams.ABORT_REQUESTS, _abort_requests)
    seams.wrap(seams.FREE_REQUEST, _free_request)
    seams.wrap(seams.UPDATE, _update_from_output)


def _initialize_kv_caches(original: Any, self: Any, vllm_config: Any) -> Any:
    # The core's last start-up function that involves the workers: after it, the model is loaded,
    # compiled and warmed up. (EngineCore.__init__ loads the plugins, so it cannot be patched.)
    config = SteeringConfig.from_vllm_config(vllm_config)
    self.saif_admission = None
    if config is not None:
        _check_scheduler(vllm_config.scheduler_config.get_scheduler_cls())
    result = original(self, vllm_config)
    if config is not None:
        rpc = self.model_executor.collective_rpc
        rpc("saif_check_start")
        catalog = SetCatalog.from_vllm_config(vllm_config, config)
        residency = Residency(catalog, write=lambda *loaded: rpc("saif_load_set", args=loaded))
        residency.preload()
        self.saif_admission = Admission(catalog, residency, scrub_kv=lambda: rpc("saif_scrub_kv"))
    return result


def _check_scheduler(scheduler: type) -> None:
    """Raise RuntimeError for a scheduler that does not tell when a request ends."""
    if not seams.is_ours(getattr(scheduler, seams.FREE_REQUEST.name, None)):
        raise RuntimeError(
            f"scheduler_cls: expected a subclass of vLLM's Scheduler that leaves "
            f"{seams.FREE_REQUEST.name} alone, which tells when a request ends, got {scheduler}"
        )


def _preprocess_add_request(original: Any, self: Any, request: Any) -> Any:
    if self.saif_admission is None:
        _refuse_steering(request)
        return original(self, request)
    hasher = self.request_block_hasher
    if hasher is not None and not isinstance(hasher, SteeredHasher):
        # From vLLM 0.26 on the scheduler has this size as an attribute.
        block_size = self.scheduler.kv_cache_manager.block_pool.hash_block_size
        self.request_block_hasher = SteeredHasher(hasher, block_size)
    # The scheduler ends requests of which a token is not finite.
    self.scheduler.saif_admission = self.saif_admission
    admitted = self.saif_admission.admit(request)
    result = original(self, request)
    result[0].saif_admitted = admitted
    if request.resumable and admitted is not None:
        self.saif_admission.begin_session(admitted)
    return result


def _refuse_steering(request: Any) -> None:
    """Raise ValueError for an ``EngineCoreRequest`` that asks to be steered by a plain engine."""
    params = request.sampling_params
    parse_extra_args(None if params is None else params.extra_args, None)


def _add_request(original: Any, self: Any, request: Any, request_wave: int = 0) -> Any:
    admission = self.saif_admission
    if admission is None:
        return original(self, request, request_wave)
    session = self.scheduler.requests.get(request.request_id)
    if not admission.continues_session(request, session):
        # The front end already rejects this; only a front end that is not ours gets here.
        self.abort_requests([request.request_id])
        self._send_error_outputs_to_client([request.request_id], request.client_index)
        return None

    def retry() -> None:
        if hasattr(self, "input_queue"):
            from vllm.v1.engine import EngineCoreRequestType

            self.input_queue.put_nowait((EngineCoreRequestType.ADD, (request, request_wave)))
        else:  # front end and core in one process
            _add_request(original, self, request, request_wave)

    start = functools.partial(original, self, request, request_wave)
    admission.add(request, start, retry)
    return None


def _abort_requests(original: Any, self: Any, request_ids: Any) -> Any:
    if self.saif_admission is not None:
        self.saif_admission.abort(request_ids)
    return original(self, request_ids)


def _free_request(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, request, *args, **kwargs)
    admitted = getattr(request, "saif_admitted", None)
    if admitted is not None:
        admitted.release()
    return result


def _update_from_output(
    original: Any, self: Any, scheduler_output: Any, model_runner_output: Any
) -> Any:
    if not hasattr(model_runner_output, "saif_nonfinite"):
        return original(self, scheduler_output, model_runner_output)
    return end_and_update(original, self, scheduler_output, model_runner_output)
