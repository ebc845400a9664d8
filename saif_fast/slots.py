"""Which set lies where in a runtime's tables: a slot each, and a range of pool rows a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from saif_fast.latent_set import LatentSet


class NoRoom(ValueError):
    """A set does not fit beside those that are placed."""


class Placement(NamedTuple):
    """Where one set lies."""

    slot: int  # the same at every layer, so that a request's row serves all
    offset: Mapping[int, int]  # first pool row, by layer that the set edits


class SetSlots:
    """Places for sets, known by content hash: equal content is placed once. Holds no tensor.

    Args:
        layers: hooked layers of the model.
        max_sets: slots.
        max_latents: pool rows at each layer, one for each live latent.
    """

    def __init__(self, layers: Sequence[int], max_sets: int, max_latents: int) -> None:
        self.layers, self.max_sets, self.max_latents = tuple(layers), max_sets, max_latents
        self._placed: dict[str, Placement] = {}
        self._pool: dict[int, dict[str, range]] = {layer: {} for layer in layers}

    @property
    def placed(self) -> Mapping[str, Placement]:
        """Every set that has a place, by content hash."""
        return MappingProxyType(self._placed)

    def place(self, latent_set: LatentSet) -> Placement:
        """Give a set a place, or return the one it has.

        Raises:
            NoRoom: no slot is free, or no range of pool rows is long enough; nothing has changed.
        """
        name = latent_set.content_hash
        if name in self._placed:
            return self._placed[name]
        free = set(range(self.max_sets)) - {placement.slot for placement in self._placed.values()}
        if not free:
            raise NoRoom(f"max_sets: all {self.max_sets} slots are taken")
        n_live = latent_set.n_live
        offset = {layer: self._find(layer, n_live[layer]) for layer in latent_set.layers}
        for layer, start in offset.items():
            self._pool[layer][name] = range(start, start + n_live[layer])
        self._placed[name] = Placement(min(free), offset)
        return self._placed[name]

    def free(self, content_hash: str) -> Placement:
        """Take a set's place away; the caller makes sure that no request still uses it."""
        for rows in self._pool.values():
            rows.pop(content_hash, None)
        return self._placed.pop(content_hash)

    def _find(self, layer: int, k: int) -> int:
        """First offset in the layer's pool with k free rows behind it."""
        start = 0
        for taken in sorted(self._pool[layer].values(), key=lambda rows: rows.start):
            if taken.start - start >= k:
                return start
            start = max(start, taken.stop)
        if start + k > self.max_latents:
            raise NoRoom(
                f"max_latents: {k} live latents do not fit in the {self.max_latents} rows "
                f"of layer {layer}"
            )
        return start
