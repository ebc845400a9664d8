"""Several runtimes of one model as one: two engines on two cores do twice the work of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest, Runtime

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class Replicas:
    """A :class:`~saif_fast.runtime.Runtime` that deals its requests out to equal runtimes.

    Each replica gets every n-th request, so that long and short ones are mixed in all of them. The
    replicas wait in threads for processes of their own.

    Args:
        replicas: runtimes of one model and one directory of sets, at least one.

    Examples:
        >>> runtime = Replicas([open_runtime("vllm", model, sets) for _ in range(2)])
        >>> runtime.generate(requests)
    """

    def __init__(self, replicas: Sequence[Runtime]) -> None:
        self._replicas = list(replicas)
        self._threads = ThreadPoolExecutor(len(self._replicas), "replica")

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate greedily; generations are in the order of ``requests``."""
        return self._deal([each.generate for each in self._replicas], requests)

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        """Return the natural-log probability of each token of each continuation, in order."""
        return self._deal([each.log_probs for each in self._replicas], requests)

    def close(self) -> None:
        """Close all replicas, whatever happens to one of them."""
        self._threads.shutdown()
        with ExitStack() as closing:
            for each in self._replicas:
                closing.callback(each.close)

    def _deal(
        self,
        calls: Sequence[Callable[[Sequence[_Request]], list[_Reply]]],
        requests: Sequence[_Request],
    ) -> list[_Reply]:
        """Give call i the requests i, i + n, ...; return the replies in the order of requests."""
        n = len(calls)
        parts = [requests[i::n] for i in range(n) if requests[i::n]]
        # zip stops at the shorter one: fewer requests than calls leave calls unused.
        dealt = list(self._threads.map(lambda call, part: call(part), calls, parts))
        return [dealt[i % n][i // n] for i in range(len(requests))]
