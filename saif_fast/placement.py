"""Placement of sets in a runtime's banks: a slot per set, and a range of pool rows per layer."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from saif_fast.latent_set import LatentSet


class NoRoom(ValueError):
    """Error for a set that does not fit beside those that are placed."""


class Placement(NamedTuple):
    """The place of one set."""

    slot: int  # the same at every layer, so that one row per request serves all layers
    offset: Mapping[int, int]  # index of the first pool row, by layer that the set edits


class SlotAllocator:
    """Allocator of places for sets. Sets with equal content share a place. Holds no tensor.

    Args:
        layers: hooked layers of the model.
        max_sets: number of slots.
        max_latents: number of pool rows per layer; each live latent takes one.
    """

    def __init__(self, layers: Sequence[int], max_sets: int, max_latents: int) -> None:
        self.layers, self.max_sets, self.max_latents = tuple(layers), max_sets, max_latents
        self._placed: dict[str, Placement] = {}  # by content hash
        self._free_slots = list(range(max_sets))  # a heap
        self._pools = {layer: _Pool(max_latents) for layer in layers}

    @property
    def placed(self) -> Mapping[str, Placement]:
        """Places of all placed sets, by content hash."""
        return MappingProxyType(self._placed)

    def place(self, latent_set: LatentSet) -> Placement:
        """Give a set a place, or return the place it has.

        Raises:
            NoRoom: no slot is free, or no gap in the pool is long enough. Nothing has changed then.
        """
        name = latent_set.content_hash
        if name in self._placed:
            return self._placed[name]
        if not self._free_slots:
            raise NoRoom(f"max_sets: all {self.max_sets} slots are taken")
        n_live = latent_set.n_live
        offset: dict[int, int] = {}
        for layer in latent_set.layers:
            found = self._pools[layer].find(n_live[layer])
            if found is None:
                raise NoRoom(
                    f"max_latents: {n_live[layer]} live latents do not fit in the "
                    f"{self.max_latents} rows of layer {layer}"
                )
            offset[layer] = found
        for layer, start in offset.items():
            self._pools[layer].take(name, start, n_live[layer])
        self._placed[name] = Placement(heapq.heappop(self._free_slots), offset)
        return self._placed[name]

    def free(self, content_hash: str) -> Placement:
        """Free a set's place. The caller makes sure that no request still uses it."""
        placement = self._placed.pop(content_hash)
        heapq.heappush(self._free_slots, placement.slot)
        for layer in placement.offset:
            self._pools[layer].give_back(content_hash)
        return placement


class _Pool:
    """The pool rows of one layer."""

    def __init__(self, n_rows: int) -> None:
        self._gaps = [range(n_rows)]  # free rows: ascending, no two gaps adjacent
        self._taken: dict[str, range] = {}  # by content hash

    def find(self, k: int) -> int | None:
        """Return the start of the first gap of k rows or more; None if there is none."""
        if k == 0:
            return 0
        return next((gap.start for gap in self._gaps if len(gap) >= k), None)

    def take(self, name: str, start: int, k: int) -> None:
        """Take k rows at the start of a gap that :meth:`find` found."""
        if k == 0:
            return
        self._taken[name] = range(start, start + k)
        i = self._gap_index(start)
        rest = self._gaps[i][k:]
        self._gaps[i : i + 1] = [rest] if rest else []

    def give_back(self, name: str) -> None:
        """Free the rows of a set, if it has any."""
        rows = self._taken.pop(name, None)
        if rows is None:
            return
        i, (start, stop) = self._gap_index(rows.start), (rows.start, rows.stop)
        if i < len(self._gaps) and self._gaps[i].start == stop:
            stop = self._gaps.pop(i).stop
        if i > 0 and self._gaps[i - 1].stop == start:
            i, start = i - 1, self._gaps.pop(i - 1).start
        self._gaps.insert(i, range(start, stop))

    def _gap_index(self, start: int) -> int:
        return bisect.bisect_left(self._gaps, start, key=lambda gap: gap.start)
