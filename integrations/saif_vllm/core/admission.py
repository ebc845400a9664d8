"""Which request goes in, with which sets, and which one waits."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from saif_vllm.catalog import Lookup, Offered, SetCatalog
from saif_vllm.core.residency import Residency
from saif_vllm.parsing import parse
from saif_vllm.request import SetUse, Steered, carry, pinned, split_keys

Scrub = Callable[[], None]
Proceed = Callable[[], None]


@dataclass(eq=False)
class Admitted:
    """A steered request as the core knows it, from its coming in to its end."""

    admission: Admission
    request_id: str  # the engine's own
    steered: Steered
    sets: dict[str, Offered]  # by content hash
    keys: dict[str, object]  # as the user gave them
    pinned: bool = False  # its sets are loaded and stay so
    aborted: bool = False  # while it waited for room
    changed: bool = False  # a piece of its streaming input asks for something else

    def release(self) -> None:
        """The request has ended, in whatever way."""
        self.admission.release(self)


class Admission:
    """The steered requests of an engine core, where requests really end.

    A request's sets stay loaded from its coming in to its end. A request that finds no room for
    them waits, and the steered requests behind it wait too: they are served in the order they came
    in.

    Args:
        catalog: the sets that are offered.
        residency: the sets that are loaded.
        scrub: clears all workers' KV caches of what is not finite.
    """

    def __init__(self, catalog: SetCatalog, residency: Residency, scrub: Scrub) -> None:
        self._catalog, self._residency, self.scrub = catalog, residency, scrub
        self._line: deque[tuple[Admitted, Proceed]] = deque()  # waiting for room
        self._returning: set[Admitted] = set()  # from the line, not yet added again
        self._sessions: dict[str, Admitted] = {}  # of streaming input, by the engine's request id
        self._numbers = itertools.count()
        self._heard: set[int] = set()  # admissions that ended with an error, for good

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._line)

    def admit(self, request: Any) -> Admitted | None:
        """Check an ``EngineCoreRequest`` before its block hashes are made; None: not steered.

        It then has parameters of its own, which carry a :class:`Steered` in place of the user's
        keys. All pieces of a streaming input, and the mark of its end, are one :class:`Admitted`:
        what has become of the sets' files since its start plays no role, nor since the front end
        found them. Called by the core's input thread.

        Raises:
            ValueError: as :func:`~saif_vllm.request.parse`.
        """
        params = request.sampling_params
        if params is None:
            return None
        given, found = pinned(params)
        keys, _ = split_keys(given)
        admitted = self._sessions.get(request.request_id)
        if admitted is None:
            lookup = Lookup(self._catalog, map(self._catalog.received, found))
            admitted = self._admitted(request, given, keys, lookup)
        elif request.resumable and keys != admitted.keys:
            admitted.changed = True
        if admitted is None:
            return None
        # Children of one request (n > 1) share theirs, where front end and core are one process.
        request.sampling_params = copy.copy(params)
        carry(request.sampling_params, admitted.steered)
        return admitted

    def _admitted(
        self, request: Any, given: dict[str, object], keys: dict[str, object], lookup: Lookup
    ) -> Admitted | None:
        asked = parse(given, self._catalog, lookup)
        if asked is None:
            return None
        uses = tuple(
            SetUse(offered.name, offered.latent_set.content_hash, strength, offered.changes_kv)
            for offered, strength in asked.sets
        )
        request_id = getattr(request, "external_req_id", None) or request.request_id
        steered = Steered(uses, asked.window, asked.capture, request_id, next(self._numbers))
        sets = {found.latent_set.content_hash: found for found, _ in asked.sets}
        return Admitted(self, request.request_id, steered, sets, keys)

    def begin_session(self, admitted: Admitted) -> None:
        """Further pieces of a streaming input will ask for the same."""
        self._sessions[admitted.request_id] = admitted

    @staticmethod
    def continues(request: Any, session: Any) -> bool:
        """Whether a vLLM ``Request`` asks for what its streaming input began with.

        Args:
            request: one that is no piece of such an input, always does.
            session: the request that took in the pieces before; None: there were none.
        """
        if not request.resumable:
            return True
        admitted: Admitted | None = request.saif
        begun = admitted if session is None else session.saif
        return begun is admitted and not (admitted is not None and admitted.changed)

    def add(self, request: Any, proceed: Proceed, again: Proceed) -> None:
        """Call ``proceed`` if the request's sets are loaded or can be, else ``again`` later.

        Args:
            request: vLLM's ``Request``, with what :meth:`admit` returned as its ``saif``.
            proceed: takes the request in.
            again: brings it here once more, when its sets are loaded.
        """
        admitted: Admitted | None = request.saif
        if admitted is None:
            proceed()
            return
        self._returning.discard(admitted)
        if admitted.aborted:
            return
        if admitted.pinned or (not self._line and self._pin(admitted)):
            carry(request.sampling_params, admitted.steered)  # with the slots of its sets
            proceed()
        else:
            self._line.append((admitted, again))

    def abort(self, request_ids: Collection[str]) -> None:
        """Forget requests that wait for room, which the scheduler does not know."""
        waiting = {admitted for admitted, _ in self._line} | self._returning
        gone = {admitted for admitted in waiting if admitted.request_id in request_ids}
        self._line = deque(entry for entry in self._line if entry[0] not in gone)
        self._returning -= gone
        for admitted in gone:
            admitted.aborted = True
            self.release(admitted)
        for request_id in request_ids:
            self._sessions.pop(request_id, None)

    def release(self, admitted: Admitted) -> None:
        """A request has ended, in whatever way; those that wait may go on."""
        self._sessions.pop(admitted.request_id, None)
        if admitted.pinned:
            admitted.pinned = False
            self._residency.release(admitted.sets, user=admitted)
        self._advance()

    def heard(self, admissions: Iterable[int]) -> None:
        """These requests have ended since they were not finite."""
        self._heard.update(admissions)

    def is_unheard(self, admission: int) -> bool:
        """Whether a request that is not finite, and has ended, has done so otherwise."""
        return admission not in self._heard

    def _advance(self) -> None:
        while self._line:
            first, again = self._line[0]
            if not self._pin(first):
                return
            self._line.popleft()
            self._returning.add(first)
            again()

    def _pin(self, admitted: Admitted) -> bool:
        """Load the request's sets and keep them; False: there is no room, and none is kept."""
        slots = self._residency.acquire(admitted.sets, user=admitted)
        if slots is None:
            return False
        admitted.pinned = True
        admitted.steered = msgspec.structs.replace(
            admitted.steered,
            sets=tuple(
                msgspec.structs.replace(use, slot=slots[use.content_hash])
                for use in admitted.steered.sets
            ),
        )
        return True
