"""Requests of which a token is not finite: they end with an error and leave nothing behind.

Such a request's KV may hold inf and NaN. So no other request may find its blocks in the prefix
cache, and the workers clear the KV cache (``worker/scrub.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from saif_vllm.core.prefix_cache import steering_key
from saif_vllm.request import Steered, format_sets

logger = logging.getLogger("vllm.saif")


def end_and_update(
    update: Callable[..., Any], scheduler: Any, scheduler_output: Any, model_runner_output: Any
) -> Any:
    """Call a scheduler's ``update`` after a step that found requests not finite.

    Those requests end first, so that the tokens sampled for them are dropped.
    """
    ended = end_requests(scheduler, scheduler_output, model_runner_output.saif_nonfinite)
    return add_error_outputs(update(scheduler, scheduler_output, model_runner_output), ended)


def end_requests(scheduler: Any, scheduler_output: Any, serials: Collection[int]) -> list[Any]:
    """End requests (vLLM's ``Request``) with an error, before a step's output is processed.

    Args:
        scheduler: vLLM's, with the core's ``Admission`` as ``saif_admission``.
        scheduler_output: of the step in which the tokens were found.
        serials: of the requests; some may have ended already.

    Returns:
        The requests that end now.
    """
    from vllm.v1.request import RequestStatus

    admission = scheduler.saif_admission
    steered = {
        request.saif_admitted.steered.serial: request
        for request in scheduler.requests.values()
        if getattr(request, "saif_admitted", None) is not None
    }
    found = [steered[serial] for serial in serials if serial in steered]
    manager = scheduler.kv_cache_manager
    begins, null = dict(_computed_before(scheduler_output)), manager.block_pool.null_block.block_id
    written: set[int] = set()  # blocks these requests wrote in this step or later
    shared: set[int] = set()  # of these, the blocks that requests steered alike may find
    for request in found:
        first = begins.get(request.request_id, 0) // scheduler.block_size
        groups = manager.get_block_ids(request.request_id)
        written.update(block for group in groups for block in group[first:])
        first = max(first, _first_steered_block(request, scheduler.block_size))
        shared.update(block for group in groups for block in group[first:])
    if any(not any(manager.get_block_ids(request.request_id)) for request in found) or any(
        admission.ended_otherwise(serial) for serial in serials if serial not in steered
    ):
        # A request was aborted or preempted while the step ran, so its blocks are unknown.
        written.update(range(len(manager.block_pool.blocks)))
    manager.evict_blocks(written - {null})
    # A request that found such blocks in the prefix cache continues from what is not finite.
    found += [
        request
        for request in steered.values()
        if request not in found
        and any(
            not (shared - {null}).isdisjoint(ids)
            for ids in manager.get_block_ids(request.request_id)
        )
    ]
    ended: list[Any] = scheduler.finish_requests(
        [request.request_id for request in found], RequestStatus.FINISHED_ERROR
    )
    admission.note_nonfinite_ends(request.saif_admitted.steered.serial for request in ended)
    for request in ended:
        steered_by = request.saif_admitted.steered
        logger.error(
            "request %s (%s): a token's residual stream or its change is not finite; the request "
            "ends with an error",
            steered_by.request_id,
            format_sets(steered_by),
        )
    # Also if all had ended before: the step still wrote to their blocks.
    admission.scrub_kv()
    return ended


def _first_steered_block(request: Any, block_size: int) -> int:
    """Return the index of the first block that only requests steered alike can share."""
    steered: Steered = request.saif_admitted.steered
    n_blocks: int = -(-request.num_tokens // block_size)
    if any(use.changes_kv for use in steered.sets):
        for i in range(n_blocks):
            if steering_key(steered, request.num_prompt_tokens, (i + 1) * block_size) is not None:
                return i
    return n_blocks


def _computed_before(scheduler_output: Any) -> Iterator[tuple[str, int]]:
    """Yield the id of each request of a step, and its number of tokens computed before."""
    for new in scheduler_output.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = scheduler_output.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)


def add_error_outputs(outputs: dict[int, Any], ended: Iterable[Any]) -> dict[int, Any]:
    """Add the end of requests to a step's outputs (vLLM's ``EngineCoreOutputs``, by client)."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    for request in ended:
        of_client = outputs.setdefault(request.client_index, EngineCoreOutputs())
        of_client.outputs.append(
            EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                events=request.take_events(),
                trace_headers=request.trace_headers,
            )
        )
    return outputs
