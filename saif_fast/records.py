"""Records in a latent set's file, as JSON: sites, latents and provenance."""

from __future__ import annotations

import msgspec

from saif_fast.edits import Edit


class SaeReference(msgspec.Struct, frozen=True, omit_defaults=True):
    """The SAE from which a site's rows were taken."""

    name: str
    content_hash: str
    architecture: str
    d_sae: int
    hook_name: str
    model_name: str | None = None


class Latent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A latent of a set: its index in the SAE, its edit, and what identification measured.

    Activations are in canonical units: one unit adds one decoder row to the residual stream.
    """

    index: int
    edit: Edit
    consistency: float | None = None  # share of pairs with a(with) > a(without)
    mean_difference: float | None = None
    mean: float | None = None  # mu over all positives
    std: float | None = None  # sigma over all positives
    mean_active: float | None = None  # mu over the positives on which it is active
    std_active: float | None = None  # sigma over the same
    density: float | None = None  # share of plain-text tokens on which it is active


class Site(msgspec.Struct, frozen=True, omit_defaults=True):
    """The residual stream after block ``layer`` (hook_resid_post), and what is edited there."""

    layer: int
    latents: list[Latent] = []
    sae: SaeReference | None = None

    @property
    def n_live(self) -> int:
        """Number of live latents, those that need the encoder."""
        return sum(not latent.edit.is_constant for latent in self.latents)


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """The origin of a set. Nothing here changes what the set does."""

    method: str  # "saif", "diff_in_means", "made", "random", "noise", "imported"
    model: str | None = None
    wordings: list[str] = []
    position: str | None = None
    statistic: str | None = None
    k: int | None = None
    beta: float | None = None
    n_pairs: int | None = None
    data_hash: str | None = None
    seed: int | None = None
    version: str | None = None
    unit: str = "canonical: a unit of activation adds one decoder row in the model's residual units"
    notes: dict[str, str] = {}
