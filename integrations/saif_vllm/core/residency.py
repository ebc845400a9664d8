"""Residency of sets: which ones are loaded into the workers' banks, and for whom."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from saif_fast.placement import NoRoom, Placement, SlotAllocator
from saif_fast.set_dir import UnknownSet
from saif_kernels import LatentEdits
from saif_vllm.catalog import Offered, SetCatalog
from saif_vllm.request import Found

logger = logging.getLogger("vllm.saif")

Write = Callable[[Placement, Mapping[int, LatentEdits]], None]


@dataclass(eq=False)
class _Resident:
    """A loaded set, and who uses it."""

    found: Found  # as of the last request for it
    users: set[Hashable] = field(default_factory=set)


class Residency:
    """The loaded sets, by content.

    A set keeps its slot as long as somebody uses it, so replacing or removing its file changes no
    running request. An unused set stays loaded if its file is still the same, until another set
    needs the room; the least recently used one goes first.

    Args:
        catalog: the sets that are offered.
        write: writes a set into the banks of all workers.
    """

    def __init__(self, catalog: SetCatalog, write: Write) -> None:
        config = catalog.config
        self._catalog, self._write = catalog, write
        self._slots = SlotAllocator(config.layers, config.max_sets, config.max_latents)
        self._loaded: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first

    @property
    def loaded(self) -> list[str]:
        """Names of the sets that are loaded."""
        return [resident.found.name for resident in self._loaded.values()]

    def preload(self) -> None:
        """Load the directory's sets as far as they fit, so that first requests need not wait."""
        for name in self._catalog:
            try:
                self._load(self._catalog[name])
            except UnknownSet:  # its file is gone
                continue
            except NoRoom:
                return

    def acquire(self, sets: Mapping[str, Offered], user: Hashable) -> dict[str, int] | None:
        """Load sets and keep them for ``user`` until :meth:`release`.

        Args:
            sets: by content hash; they fit if nothing else is loaded.
            user: whom they are kept for.

        Returns:
            Their slots by content hash; None: there is no room now, and none of them is kept.
        """
        if not self._load_all(sets, user):
            if any(resident.users for resident in self._loaded.values()):
                return None
            # Idle sets can leave holes that are too small.
            for content_hash in list(self._loaded):
                self._unload(content_hash)
            all_loaded = self._load_all(sets, user)
            assert all_loaded, "a request that never fits was admitted"
        return {content_hash: self._slots.placed[content_hash].slot for content_hash in sets}

    def release(self, sets: Iterable[str], user: Hashable) -> None:
        """Give back what :meth:`acquire` kept for ``user``.

        Args:
            sets: their content hashes.
            user: as given to :meth:`acquire`.
        """
        for content_hash in sets:
            resident = self._loaded[content_hash]
            resident.users.discard(user)
            if not resident.users and not self._catalog.is_current(resident.found):
                self._unload(content_hash)

    def _load_all(self, sets: Mapping[str, Offered], user: Hashable) -> bool:
        """Load sets and note their user; False: not all fit, and ``user`` uses none."""
        for content_hash, offered in sets.items():
            try:
                self._make_room_and_load(offered)
            except NoRoom:
                for resident in self._loaded.values():
                    resident.users.discard(user)
                return False
            self._loaded[content_hash].users.add(user)
        return True

    def _make_room_and_load(self, offered: Offered) -> None:
        """Load a set unless it is loaded; sets that nobody uses make room.

        Raises:
            NoRoom: they were too few.
        """
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
            self._write(placement, offered.edits)
            logger.info(
                "Loaded set %s into slot %d in %.1f ms",
                offered.name,
                placement.slot,
                1e3 * (time.perf_counter() - began),
            )
            self._loaded[content_hash] = _Resident(offered.found)

    def _unload(self, content_hash: str) -> None:
        del self._loaded[content_hash]
        self._slots.free(content_hash)
