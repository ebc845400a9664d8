"""Find the SAE latents that make a model follow an instruction, and freeze them in a small file."""

from saif_fast.edits import Edit
from saif_fast.latent_set import Latent, LatentSet
from saif_fast.sae import SparseAutoencoder
from saif_fast.set_dir import SetDirectory

__all__ = ["Edit", "Latent", "LatentSet", "SetDirectory", "SparseAutoencoder"]

__version__ = "0.1.0"
