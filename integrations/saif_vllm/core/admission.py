"""Admission of requests: which one goes in, with which sets, and which one waits."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from saif_vllm.catalog import Lookup, Offered, SetCatalog
from saif_vllm.core.residency import Residency
from saif_vllm.parsing import parse_extra_args
from saif_vllm.request import Placed, SetUse, Steered, put_steered, split_keys, take_found


@dataclass(eq=False)
class Admitted:
    """A steered request as the core knows it, from its arrival to its end."""

    admission: Admission
    request_id: str  # the engine's own
    steered: Steered
    sets: dict[str, Offered]  # by content hash
    keys: dict[str, object]  # as the user gave them
    placed: Placed | None = None  # while its sets are loaded and kept for it
    aborted: bool = False  # while it waited for room
    changed: bool = False  # a piece of its streaming input asks for something else

    def release(self) -> None:
        """Give back the request's sets: it has ended, in whatever way."""
        self.admission.release(self)


class Admission:
    """The steered requests of an engine core, from their arrival to their end.

    A request's sets are kept loaded from its start to its end. A request that finds no room for its
    sets waits in a queue, and so do the steered requests that arrive after it: all start in the
    order of their arrival.

    Args:
        catalog: the sets that are offered.
        residency: the sets that are loaded.
        scrub_kv: clears all workers' KV caches of numbers that are not finite.
    """

    def __init__(
        self, catalog: SetCatalog, residency: Residency, scrub_kv: Callable[[], None]
    ) -> None:
        self._catalog, self._residency, self.scrub_kv = catalog, residency, scrub_kv
        # Waiting for room, each with what brings it back here.
        self._queue: deque[tuple[Admitted, Callable[[], None]]] = deque()
        self._requeued: set[Admitted] = set()  # out of the queue, and not yet added again
        self._sessions: dict[str, Admitted] = {}  # of streaming input, by the engine's request id
        self._serials = itertools.count()
        self._ended_nonfinite: set[int] = set()  # serials

    @property
    def waiting(self) -> int:
        """Number of requests that wait for room."""
        return len(self._queue)

    def admit(self, request: Any) -> Admitted | None:
        """Check an ``EngineCoreRequest`` before vLLM hashes its blocks.

        The request gets parameters of its own, which carry a :class:`Steered` in place of the
        user's keys. All pieces of a streaming input, and the mark of its end, are one
        :class:`Admitted`. The sets are those that the front end found, even if the files have
        changed since then. The core's input thread calls this.

        Returns:
            None: the request does not steer.

        Raises:
            ValueError: as :func:`~saif_vllm.parsing.parse_extra_args`.
        """
        params = request.sampling_params
        if params is None:
            return None
        given, found = take_found(params)
        keys, _ = split_keys(given)
        admitted = self._sessions.get(request.request_id)
        if admitted is None:
            lookup = Lookup(self._catalog, map(self._catalog.read_received, found))
            admitted = self._make_admitted(request, given, keys, lookup)
        elif request.resumable and keys != admitted.keys:
            admitted.changed = True
        if admitted is None:
            return None
        # Where front end and core are one process, the children of a request (n > 1) share one
        # object.
        request.sampling_params = copy.copy(params)
        put_steered(request.sampling_params, admitted.steered)
        return admitted

    def _make_admitted(
        self, request: Any, given: dict[str, object], keys: dict[str, object], lookup: Lookup
    ) -> Admitted | None:
        asked = parse_extra_args(given, self._catalog, lookup)
        if asked is None:
            return None
        uses = tuple(
            SetUse(offered.name, offered.latent_set.content_hash, strength, offered.changes_kv)
            for offered, strength in asked.sets
        )
        request_id = getattr(request, "external_req_id", None) or request.request_id
        steered = Steered(uses, asked.window, asked.capture, request_id, next(self._serials))
        sets = {found.latent_set.content_hash: found for found, _ in asked.sets}
        return Admitted(self, request.request_id, steered, sets, keys)

    def begin_session(self, admitted: Admitted) -> None:
        """Keep ``admitted`` for the further pieces of its streaming input."""
        self._sessions[admitted.request_id] = admitted

    @staticmethod
    def continues_session(request: Any, session: Any) -> bool:
        """Return whether a vLLM ``Request`` asks for what its streaming input began with.

        Args:
            request: one that is no piece of a streaming input always does.
            session: the request that took in the earlier pieces; None: there were none.
        """
        if not request.resumable:
            return True
        admitted: Admitted | None = request.saif_admitted
        begun = admitted if session is None else session.saif_admitted
        return begun is admitted and not (admitted is not None and admitted.changed)

    def add(self, request: Any, start: Callable[[], None], retry: Callable[[], None]) -> None:
        """Call ``start`` if the request's sets are loaded or can be; else call ``retry`` later.

        Args:
            request: vLLM's ``Request``, with what :meth:`admit` returned as its ``saif_admitted``.
            start: hands the request to the scheduler.
            retry: brings the request here once more, when its sets are loaded.
        """
        admitted: Admitted | None = request.saif_admitted
        if admitted is None:
            start()
            return
        self._requeued.discard(admitted)
        if admitted.aborted:
            return
        if admitted.placed is None and not self._queue:
            self._acquire_sets(admitted)
        if admitted.placed is not None:
            put_steered(request.sampling_params, admitted.placed)
            start()
        else:
            self._queue.append((admitted, retry))

    def abort(self, request_ids: Collection[str]) -> None:
        """Forget requests that wait for room. The scheduler does not know them."""
        waiting = {admitted for admitted, _ in self._queue} | self._requeued
        gone = {admitted for admitted in waiting if admitted.request_id in request_ids}
        self._queue = deque(entry for entry in self._queue if entry[0] not in gone)
        self._requeued -= gone
        for admitted in gone:
            admitted.aborted = True
            self.release(admitted)
        for request_id in request_ids:
            self._sessions.pop(request_id, None)

    def release(self, admitted: Admitted) -> None:
        """Give back the sets of a request that has ended, and start those that waited for room."""
        self._sessions.pop(admitted.request_id, None)
        if admitted.placed is not None:
            admitted.placed = None
            self._residency.release(admitted.sets, user=admitted)
        self._advance_queue()

    def note_nonfinite_ends(self, serials: Iterable[int]) -> None:
        """Note which requests were ended because a token was not finite."""
        self._ended_nonfinite.update(serials)

    def ended_otherwise(self, serial: int) -> bool:
        """Return whether a request that has ended did so for another reason than not being finite.

        Its blocks were freed without being cleared, for example after an abort.
        """
        return serial not in self._ended_nonfinite

    def _advance_queue(self) -> None:
        while self._queue:
            first, retry = self._queue[0]
            if not self._acquire_sets(first):
                return
            self._queue.popleft()
            self._requeued.add(first)
            retry()

    def _acquire_sets(self, admitted: Admitted) -> bool:
        """Load the request's sets and keep them; False: there is no room, and none is kept."""
        slots = self._residency.acquire(admitted.sets, user=admitted)
        if slots is None:
            return False
        admitted.placed = Placed.of(admitted.steered, slots)
        return True
