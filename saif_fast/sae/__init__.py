"""Sparse autoencoders: one canonical form, and one door through which every format comes in."""

from saif_fast.sae.autoencoder import Calibration, Normalization, SparseAutoencoder
from saif_fast.sae.load import load_sae

__all__ = ["Calibration", "Normalization", "SparseAutoencoder", "load_sae"]
