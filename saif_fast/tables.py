"""The tables a runtime steers from, and which set owns which slot."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from saif_fast.latent_set import LatentSet
from saif_kernels import MAX_LATENTS, LatentEdits, RequestRows, SteeringBank


@dataclass(frozen=True)
class Capacity:
    """What is allocated at start; nothing grows afterwards."""

    max_sets: int  # resident sets
    max_latents: int  # live latents of all resident sets together, at each layer
    max_requests: int
    max_sets_per_request: int


class SteeringTables:
    """Banks and rows on one device, allocated once and filled in place.

    A set has the same slot in the bank of every hooked layer (empty where it edits nothing), so a
    request's row serves all layers. Sets are known by content hash: loading equal content twice
    gives the same slot.

    Args:
        layers: hooked layers of the model.
        owned: those whose banks this process holds (a pipeline rank's); None = all.
    """

    def __init__(
        self,
        layers: Sequence[int],
        d_model: int,
        num_layers: int,
        capacity: Capacity,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        owned: Collection[int] | None = None,
    ) -> None:
        self.layers = tuple(sorted(set(layers)))
        self.d_model, self.num_layers, self.capacity = d_model, num_layers, capacity
        self.banks = {
            layer: SteeringBank.allocate(
                d_model, capacity.max_sets, capacity.max_latents, dtype, device
            )
            for layer in self.layers
            if owned is None or layer in owned
        }
        self.rows = RequestRows.allocate(
            capacity.max_requests, capacity.max_sets_per_request, device
        )
        self._slots: dict[str, int] = {}
        self._pool: dict[int, dict[int, range]] = {layer: {} for layer in self.banks}

    @property
    def nbytes(self) -> int:
        """Device memory of all tables in bytes."""
        return sum(bank.nbytes for bank in self.banks.values()) + self.rows.table.nbytes

    @property
    def slots(self) -> Mapping[str, int]:
        """Slot of every resident set, by content hash."""
        return MappingProxyType(self._slots)

    def load(self, latent_set: LatentSet) -> int:
        """Make a set resident and return its slot.

        Raises:
            ValueError: it was made for another model shape, edits a layer that is not hooked, or
                does not fit, in number or in the model's dtype; nothing was written.
        """
        if latent_set.content_hash in self._slots:
            return self._slots[latent_set.content_hash]
        latent_set.check_model(self.d_model, self.num_layers)
        foreign = [layer for layer in latent_set.layers if layer not in self.layers]
        if foreign:
            raise ValueError(
                f"latent set edits layer {foreign[0]}, but the hooked layers are "
                f"{list(self.layers)}"
            )
        free = set(range(self.capacity.max_sets)) - set(self._slots.values())
        if not free:
            raise ValueError(f"max_sets: all {self.capacity.max_sets} slots are taken")
        n_live = latent_set.n_live
        for layer, k in n_live.items():
            if k > MAX_LATENTS:
                raise ValueError(
                    f"latent set at layer {layer}: expected at most {MAX_LATENTS} live latents, "
                    f"got {k}"
                )
        offsets = {
            layer: self._find(layer, n_live[layer])
            for layer in latent_set.layers
            if layer in self.banks
        }
        slot = min(free)
        compiled = {layer: latent_set.compile(layer) for layer in offsets}
        for layer, edits in compiled.items():
            _check_range(layer, edits, self.banks[layer].vector.dtype)
        for layer, offset in offsets.items():
            edits = compiled[layer]
            self.banks[layer].write(slot, offset, edits)
            self._pool[layer][slot] = range(offset, offset + edits.W_enc.shape[0])
        self._slots[latent_set.content_hash] = slot
        return slot

    def unload(self, content_hash: str) -> None:
        """Free a resident set's slot and rows; the caller makes sure that no request still uses
        it.
        """
        slot = self._slots.pop(content_hash)
        for layer, bank in self.banks.items():
            bank.clear(slot)
            self._pool[layer].pop(slot, None)

    def _find(self, layer: int, k: int) -> int:
        """First offset in the layer's pool with k free rows behind it."""
        start = 0
        for taken in sorted(self._pool[layer].values(), key=lambda rows: rows.start):
            if taken.start - start >= k:
                return start
            start = max(start, taken.stop)
        if start + k > self.capacity.max_latents:
            raise ValueError(
                f"max_latents: {k} live latents do not fit in the {self.capacity.max_latents} rows "
                f"of layer {layer}"
            )
        return start


def _check_range(layer: int, edits: LatentEdits, dtype: torch.dtype) -> None:
    for name in ("W_enc", "W_dec", "vector"):
        if not getattr(edits, name).to(dtype).isfinite().all():
            raise ValueError(
                f"latent set {name} at layer {layer}: expected values within {dtype}, "
                "got larger ones"
            )
