"""The device tables a runtime steers from, and what may be put into them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from saif_fast.latent_set import LatentSet
from saif_fast.set_file import SetHeader
from saif_fast.slots import Placement
from saif_kernels import MAX_LATENTS, LatentEdits, SteeringBank


@dataclass(frozen=True)
class HookedModel:
    """What a set must fit: a model, and the layers of it that are hooked."""

    layers: tuple[int, ...]  # hooked, ascending
    d_model: int
    num_layers: int
    dtype: torch.dtype

    def check(self, header: SetHeader, max_latents: int) -> None:
        """What a set's header can tell of :meth:`compile`.

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

    def compile(self, latent_set: LatentSet, max_latents: int) -> dict[int, LatentEdits]:
        """What the tables take of a set, by layer that it edits.

        Raises:
            ValueError: as :meth:`check`; or the set has values beyond the model's dtype, or changes
                nothing, as one of ``scale:1`` alone.
        """
        self.check(latent_set.header, max_latents)
        compiled = {layer: latent_set.compile(layer) for layer in latent_set.layers}
        for layer, edits in compiled.items():
            for name in ("W_enc", "W_dec", "vector"):
                if not getattr(edits, name).to(self.dtype).isfinite().all():
                    raise ValueError(
                        f"latent set {name} at layer {layer}: expected values within {self.dtype}, "
                        "got larger ones"
                    )
        if not any(_changes_something(edits, self.dtype) for edits in compiled.values()):
            raise ValueError(
                "latent set: expected an edit that changes something, got only ones that add 0 "
                f"({self.dtype}) whatever the activations are"
            )
        return compiled


def _changes_something(edits: LatentEdits, dtype: torch.dtype) -> bool:
    # D = max(lo, p + q * a) is 0 for every a only where p and q are, and lo is not above.
    moves = (edits.p != 0) | (edits.q != 0) | (edits.lo > 0)
    rows = (edits.vector, edits.W_dec[moves])
    return any(bool((row.to(dtype) != 0).any()) for row in rows)


class SteeringTables:
    """The banks of hooked layers on one device, allocated once and filled in place.

    A set has the same slot in the bank of every hooked layer (empty where it edits nothing), so a
    request's row serves all layers. :class:`~saif_fast.slots.SetSlots` says where a set goes.

    Args:
        max_sets: resident sets.
        max_latents: live latents of all resident sets together, at each layer.
        owned: the layers whose banks this process holds (a pipeline rank's); None = all.
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

    def write(self, placement: Placement, compiled: Mapping[int, LatentEdits]) -> None:
        """Put a set into its place, whatever another set left there.

        Args:
            compiled: by layer, as :meth:`HookedModel.compile` makes it.
        """
        for layer, bank in self.banks.items():
            if layer in compiled:
                bank.write(placement.slot, placement.offset[layer], compiled[layer])
            else:
                bank.clear(placement.slot)
