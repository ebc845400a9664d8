"""Sparse autoencoders: the canonical form, and ``load_sae``, which reads every format into it."""

from saif_fast.sae.autoencoder import Calibration, Normalization, SparseAutoencoder
from saif_fast.sae.load import load_sae

__all__ = ["Calibration", "Normalization", "SparseAutoencoder", "load_sae"]
