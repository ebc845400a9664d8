"""The device banks a runtime steers from, one per hooked layer, and what may be put into them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from saif_fast.latent_set import LatentSet
from saif_fast.placement import Placement
from saif_fast.set_file import SetHeader
from saif_kernels import MAX_LATENTS, LatentEdits, SteeringBank


@dataclass(frozen=True)
class HookedModel:
    """The shape of a model and its hooked layers: what a set must fit."""

    layers: tuple[int, ...]  # hooked, ascending
    d_model: int
    num_layers: int
    dtype: torch.dtype

    def check_header(self, header: SetHeader, max_latents: int) -> None:
        """Check all that a set's header tells, before its tensors are read.

        Raises:
            ValueError: the set was made for another model shape, edits a layer that is not hooked,
                or has more live latents at a layer than the pool.
        """
        header.check_model(self.d_model, self.num_layers)
        for layer, k in header.n_live.items():
            if layer not in self.layers:
                raise ValueError(
                    f"latent set: expected a hooked layer ({', '.join(map(str, self.layers))}), "
                    f"got layer {layer}"
                )
            if k > min(MAX_LATENTS, max_latents):
                raise ValueError(
                    f"latent set at layer {layer}: expected at most "
                    f"{min(MAX_LATENTS, max_latents)} live latents, got {k}"
                )

    def edits_by_layer(self, latent_set: LatentSet, max_latents: int) -> dict[int, LatentEdits]:
        """Return what the banks take of a set, for each layer that it edits.

        Raises:
            ValueError: as :meth:`check_header`; or the set has values beyond the model's dtype, or
                changes nothing (``scale:1`` alone, for example).
        """
        self.check_header(latent_set.header, max_latents)
        found = {layer: latent_set.edits_at(layer) for layer in latent_set.layers}
        for layer, edits in found.items():
            for name in ("W_enc", "W_dec", "vector"):
                if not getattr(edits, name).to(self.dtype).isfinite().all():
                    raise ValueError(
                        f"latent set {name} at layer {layer}: expected values within {self.dtype}, "
                        "got larger ones"
                    )
        if not any(_changes_something(edits, self.dtype) for edits in found.values()):
            raise ValueError(
                "latent set: expected an edit that changes something, got only ones that add 0 "
                f"({self.dtype}) whatever the activations are"
            )
        return found


def _changes_something(edits: LatentEdits, dtype: torch.dtype) -> bool:
    # D = max(lo, p + q * a) is 0 for every a only where p and q are, and lo is not above.
    moves = (edits.p != 0) | (edits.q != 0) | (edits.lo > 0)
    rows = (edits.vector, edits.W_dec[moves])
    return any(bool((row.to(dtype) != 0).any()) for row in rows)


class LayerBanks:
    """The banks of hooked layers on one device, allocated once and filled in place.

    A set has the same slot in the bank of every hooked layer (empty where it edits nothing), so one
    row per request serves all layers. :class:`~saif_fast.placement.SlotAllocator` says where a set
    goes.

    Args:
        model: the model and its hooked layers.
        max_sets: sets that can be loaded at a time.
        max_latents: live latents of all loaded sets together, per layer.
        device: where the banks are.
        owned: the layers whose banks this process holds (a pipeline rank's); None = all.

    Examples:
        >>> banks = LayerBanks(model, max_sets=8, max_latents=512, device="cuda")
        >>> banks.write_set(allocator.place(latent_set), model.edits_by_layer(latent_set, 512))
    """

    def __init__(
        self,
        model: HookedModel,
        max_sets: int,
        max_latents: int,
        device: torch.device | str,
        *,
        owned: Collection[int] | None = None,
    ) -> None:
        self.banks = {
            layer: SteeringBank.allocate(model.d_model, max_sets, max_latents, model.dtype, device)
            for layer in model.layers
            if owned is None or layer in owned
        }

    def write_set(self, placement: Placement, edits: Mapping[int, LatentEdits]) -> None:
        """Write a set into its place; whatever another set left there is gone.

        Args:
            placement: where the set goes.
            edits: what it does at each layer, from :meth:`HookedModel.edits_by_layer`.
        """
        for layer, bank in self.banks.items():
            if layer in edits:
                bank.write_set(placement.slot, placement.offset[layer], edits[layer])
            else:
                bank.clear_slot(placement.slot)
