"""Find the SAE latents that make a model follow an instruction, and freeze them in a small file."""

from saif_fast.edits import Edit
from saif_fast.identify import find_latents
from saif_fast.latent_set import LatentSet
from saif_fast.records import Latent, Provenance
from saif_fast.sae import SparseAutoencoder, load_sae
from saif_fast.set_dir import SetDirectory
from saif_fast.version import __version__

__all__ = [
    "Edit",
    "Latent",
    "LatentSet",
    "Provenance",
    "SetDirectory",
    "SparseAutoencoder",
    "__version__",
    "find_latents",
    "load_sae",
]
