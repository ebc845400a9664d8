"""The engine core's side: which request is served with which sets, and which sets are loaded."""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from saif_fast.placement import NoRoom, Placement, SlotAllocator
from saif_fast.set_dir import UnknownSet
from saif_kernels import LatentEdits
from saif_vllm.catalog import Found, Lookup, Offered, SetCatalog
from saif_vllm.request import SetUse, Steered, carry, parse, pinned, split_keys

logger = logging.getLogger("vllm.saif")

Write = Callable[[Placement, Mapping[int, LatentEdits]], None]
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


@dataclass(eq=False)
class _Set:
    """A loaded set."""

    found: Found  # as of the last request for it
    users: set[Admitted] = field(default_factory=set)


class Admission:
    """Loads sets for the requests that ask for them; in the engine core, where requests really end.

    A set keeps its slot as long as a request uses it: replacing or removing its file changes no
    request that is running. Afterwards its slot is free for another set, least recently used first;
    until then it stays loaded, if its file is still the same. A request that finds no room waits,
    and the steered requests behind it wait too: they are served in the order they came in.

    Args:
        catalog: the sets that are offered.
        write: puts a set into the tables of all workers.
        scrub: clears all workers' KV caches of what is not finite.
    """

    def __init__(self, catalog: SetCatalog, write: Write, scrub: Scrub) -> None:
        config = catalog.config
        self._catalog, self._write, self.scrub = catalog, write, scrub
        self._slots = SlotAllocator(config.layers, config.max_sets, config.max_latents)
        self._loaded: OrderedDict[str, _Set] = OrderedDict()  # least recently used first
        self._line: deque[tuple[Admitted, Proceed]] = deque()  # waiting for room
        self._returning: set[Admitted] = set()  # from the line, not yet added again
        self._sessions: dict[str, Admitted] = {}  # of streaming input, by the engine's request id
        self._numbers = itertools.count()
        self._heard: set[int] = set()  # admissions that ended with an error, for good

    @property
    def loaded(self) -> list[str]:
        """Names of the sets that are loaded."""
        return [known.found.name for known in self._loaded.values()]

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._line)

    def preload(self) -> None:
        """Load what the directory offers, as far as it fits: first requests then find it there."""
        for name in self._catalog:
            try:
                self._load(self._catalog[name])
            except UnknownSet:  # has gone meanwhile
                continue
            except NoRoom:
                return

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
            for content_hash in admitted.sets:
                self._unpin(content_hash, admitted)
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
        if not self._place_all(admitted):
            if any(known.users for known in self._loaded.values()):
                return False
            # Idle sets can leave holes that are too small. With none loaded, any request fits that
            # passed validation.
            for content_hash in list(self._loaded):
                self._unload(content_hash)
            placed_all = self._place_all(admitted)
            assert placed_all, "a request that never fits was admitted"
        admitted.pinned = True
        placed = self._slots.placed
        admitted.steered = msgspec.structs.replace(
            admitted.steered,
            sets=tuple(
                msgspec.structs.replace(use, slot=placed[use.content_hash].slot)
                for use in admitted.steered.sets
            ),
        )
        return True

    def _place_all(self, admitted: Admitted) -> bool:
        """Load the request's sets, used by it from then on; False: not all fit, and none is."""
        for offered in admitted.sets.values():
            try:
                self._place(offered)
            except NoRoom:
                for known in self._loaded.values():
                    known.users.discard(admitted)
                return False
            self._loaded[offered.latent_set.content_hash].users.add(admitted)
        return True

    def _place(self, offered: Offered) -> None:
        """Load a set unless it is; sets that nobody uses make room. NoRoom: they were too few."""
        content_hash = offered.latent_set.content_hash
        while content_hash not in self._loaded:
            try:
                self._load(offered)
            except NoRoom:
                idle = next((h for h, known in self._loaded.items() if not known.users), None)
                if idle is None:
                    raise
                self._unload(idle)
        self._loaded[content_hash].found = offered.found
        self._loaded.move_to_end(content_hash)

    def _load(self, offered: Offered) -> None:
        content_hash = offered.latent_set.content_hash
        if content_hash not in self._loaded:
            placement = self._slots.place(offered.latent_set)
            began = time.perf_counter()
            self._write(placement, offered.compiled)
            logger.info(
                "Loaded set %s into slot %d in %.1f ms",
                offered.name,
                placement.slot,
                1e3 * (time.perf_counter() - began),
            )
            self._loaded[content_hash] = _Set(offered.found)

    def _unpin(self, content_hash: str, admitted: Admitted) -> None:
        known = self._loaded[content_hash]
        known.users.discard(admitted)
        if not known.users and not self._catalog.is_current(known.found):
            self._unload(content_hash)

    def _unload(self, content_hash: str) -> None:
        del self._loaded[content_hash]
        self._slots.free(content_hash)
