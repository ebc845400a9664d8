"""Requests that come, go and are aborted while an engine runs, step by step."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any


class Stream:
    """Requests in flight through a ``vllm.LLM``. Their ids are used again as soon as they may be.

    Args:
        llm: the engine.

    Attributes:
        errors: outputs that the engine ended with an error of its own.
    """

    def __init__(self, llm: Any) -> None:
        self._engine = llm.llm_engine
        self.errors = 0
        self._free: list[int] = []
        self._n_ids = 0
        self._key: dict[str, Any] = {}  # of the caller, by id
        self._tokens: dict[str, list[list[int]]] = {}  # of each output, by id

    def __len__(self) -> int:
        return len(self._key)

    @property
    def keys(self) -> list[Any]:
        """Keys of the requests in flight."""
        return list(self._key.values())

    def add(self, key: Any, request: Mapping[str, Any]) -> tuple[str, list[str]]:
        """Send a request.

        Returns:
            The id that it has as long as it runs, and the engine's own of each of its n outputs.
        """
        from vllm import SamplingParams

        if not self._free:
            self._free.append(self._n_ids)
            self._n_ids += 1
        request_id, n = f"r{heapq.heappop(self._free)}", request.get("n", 1)
        params = SamplingParams(
            # Greedy, which vLLM refuses to be asked for by temperature 0 where n > 1.
            temperature=1.0,
            top_k=1,
            ignore_eos=True,
            detokenize=False,
            n=n,
            max_tokens=request["max_tokens"],
            extra_args=request["extra_args"],
        )
        prompt = {"prompt_token_ids": request["prompt"]}
        priority = request.get("priority", 0)
        own = self._engine.add_request(request_id, prompt, params, priority=priority)
        self._key[request_id], self._tokens[request_id] = key, [[] for _ in range(n)]
        return request_id, [own] if n == 1 else [f"{i}_{own}" for i in range(n)]

    def abort(self, key: Any) -> bool:
        """Abort a request; False: it has ended already."""
        found = [request_id for request_id, other in self._key.items() if other == key]
        self._engine.abort_request(found)
        for request_id in found:
            self._end(request_id)
        return bool(found)

    def step(self) -> dict[Any, tuple[list[list[int]], bool]]:
        """Run one step; return each output's tokens so far, and whether that is all, by key."""
        got = {}
        for output in self._engine.step():
            tokens = self._tokens[output.request_id]
            for found in output.outputs:  # one of n, as a rule
                tokens[found.index] = list(found.token_ids)
                self.errors += found.finish_reason == "error"
            got[self._key[output.request_id]] = tokens, output.finished
            if output.finished:
                self._end(output.request_id)
        return got

    def _end(self, request_id: str) -> None:
        del self._key[request_id], self._tokens[request_id]
        heapq.heappush(self._free, int(request_id[1:]))


class SchedulerProbe:
    """A watch on what the scheduler of an engine core in this process does to requests.

    Attributes:
        fresh: ranges of positions by the engine's request id, each computed for the first time and
            beyond all that were before.
        one_token_chunks: parts of prompts that are one token long.
    """

    def __init__(self, core: Any) -> None:
        self.fresh: dict[str, list[tuple[int, int]]] = {}
        self.one_token_chunks = 0
        self._scheduler, self._schedule = core.scheduler, core.scheduler.schedule
        core.scheduler.schedule = self._watched

    def _watched(self, *args: Any) -> Any:
        plan = self._schedule(*args)
        cached = plan.scheduled_cached_reqs
        start = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        start |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request_id, n in plan.num_scheduled_tokens.items():
            begin, known = start[request_id], self.fresh.setdefault(request_id, [])
            beyond = known[-1][1] if known else 0
            if begin + n > beyond:
                known.append((max(begin, beyond), begin + n))
            prompt_len = self._scheduler.requests[request_id].num_prompt_tokens
            self.one_token_chunks += n == 1 and begin < prompt_len
        return plan


def serve_events(llm: Any, events: Sequence[Mapping[str, Any]], change_sets: Any) -> dict[str, Any]:
    """Let ``events`` (``workload.random_events``) happen to an engine of one process.

    Returns:
        ``requests``: of each its tokens by output, whether it ``finished``, its ``id`` and, by
        output, the ranges of positions that were ``fresh``. And what the scheduler did.
    """
    core = llm.llm_engine.engine_core.engine_core
    stream, probe = Stream(llm), SchedulerProbe(core)
    requests: list[dict[str, Any]] = []
    own_ids: list[list[str]] = []
    step, most_waiting, left = 0, 0, list(reversed(events))
    while left or len(stream):
        while left and left[-1]["step"] <= step:
            event = left.pop()
            if "sets" in event:
                change_sets(event["sets"])
            elif "abort" in event:
                stream.abort(event["abort"])
            else:
                request_id, own = stream.add(len(requests), event["request"])
                requests.append({"id": request_id, "tokens": [[] for _ in own], "finished": False})
                own_ids.append(own)
        for key, (tokens, finished) in stream.step().items() if len(stream) else ():
            requests[key] |= {"tokens": tokens, "finished": finished}
        admission = getattr(core, "saif_admission", None)
        most_waiting = max(most_waiting, getattr(admission, "waiting", 0))
        step += 1
        assert step < 50 * len(events), "the engine does not come to an end"
    for request, own in zip(requests, own_ids, strict=True):
        request["fresh"] = [probe.fresh.get(request_id, []) for request_id in own]
    return {
        "requests": requests,
        "steps": step,
        "asynchronous": llm.llm_engine.vllm_config.scheduler_config.async_scheduling,
        "one_token_chunks": probe.one_token_chunks,
        "most_waiting_for_room": most_waiting,
    }
