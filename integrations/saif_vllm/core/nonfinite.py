"""A request of which a token is not finite ends with an error, alone, and leaves nothing behind.

Its KV may hold inf and NaN. No other request may find its blocks in the prefix cache, and a block
that is used again must hold finite numbers (``worker/scrub.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from saif_vllm.core.prefix_cache import steering_key
from saif_vllm.request import Steered, spelled

logger = logging.getLogger("vllm.saif")


def end_and_update(
    update: Callable[..., Any], scheduler: Any, scheduler_output: Any, model_runner_output: Any
) -> Any:
    """A scheduler's update by the output of a step that found requests not finite.

    They end first: what was sampled of them is not taken in.
    """
    ended = end_requests(scheduler, scheduler_output, model_runner_output.saif_nonfinite)
    return error_outputs(update(scheduler, scheduler_output, model_runner_output), ended)


def end_requests(scheduler: Any, scheduler_output: Any, admissions: Collection[int]) -> list[Any]:
    """End requests (vLLM's ``Request``) with an error, before the output of a step is taken in.

    Args:
        scheduler: vLLM's; its ``saif`` is the core's ``Admission``.
        scheduler_output: of the step in which their tokens were found.
        admissions: numbers of the requests; some may have ended already.

    Returns:
        Those that have ended now.
    """
    from vllm.v1.request import RequestStatus

    steered = {
        request.saif.steered.admission: request
        for request in scheduler.requests.values()
        if getattr(request, "saif", None) is not None
    }
    found = [steered[admission] for admission in admissions if admission in steered]
    manager = scheduler.kv_cache_manager
    begins, null = dict(_computed_before(scheduler_output)), manager.block_pool.null_block.block_id
    written: set[int] = set()  # by these requests, in this step or later
    shared: set[int] = set()  # of these, what others find who are steered alike
    for request in found:
        first = begins.get(request.request_id, 0) // scheduler.block_size
        groups = manager.get_block_ids(request.request_id)
        written.update(block for group in groups for block in group[first:])
        first = max(first, _first_keyed(request, scheduler.block_size))
        shared.update(block for group in groups for block in group[first:])
    if any(not any(manager.get_block_ids(request.request_id)) for request in found) or any(
        scheduler.saif.is_unheard(admission) for admission in admissions if admission not in steered
    ):
        # One was aborted or preempted while the step ran: nobody knows its blocks any more.
        written.update(range(len(manager.block_pool.blocks)))
    manager.evict_blocks(written - {null})
    # Who found them in the prefix cache goes on from what is not finite.
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
    scheduler.saif.heard(request.saif.steered.admission for request in ended)
    for request in ended:
        logger.error(
            "request %s (%s): a token's residual stream or its change is not finite; the request "
            "ends with an error",
            request.saif.steered.request_id,
            spelled(request.saif.steered),
        )
    # Also where all had ended: the step went on writing to their blocks.
    scheduler.saif.scrub()
    return ended


def _first_keyed(request: Any, block_size: int) -> int:
    """The first of a request's blocks that nobody shares but those who are steered alike."""
    steered: Steered = request.saif.steered
    n_blocks: int = -(-request.num_tokens // block_size)
    if any(use.changes_kv for use in steered.sets):
        for i in range(n_blocks):
            if steering_key(steered, request.num_prompt_tokens, (i + 1) * block_size) is not None:
                return i
    return n_blocks


def _computed_before(scheduler_output: Any) -> Iterator[tuple[str, int]]:
    """Requests of a step, by id, with the number of tokens that were computed before it."""
    for new in scheduler_output.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = scheduler_output.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)


def error_outputs(outputs: dict[int, Any], ended: Iterable[Any]) -> dict[int, Any]:
    """Add to a step's outputs (vLLM's ``EngineCoreOutputs`` by client) the end of requests."""
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
