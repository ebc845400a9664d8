"""``load_sae``, which reads SAEs of every format.

To add a format: a file ``saif_fast/sae/<format>.py`` that returns a :class:`SparseAutoencoder`, a
line in :func:`load_sae` that picks it, and a fixture in ``tests/sae``.
"""

from __future__ import annotations

from pathlib import Path

from saif_fast.sae import saelens
from saif_fast.sae.autoencoder import SparseAutoencoder


def load_sae(
    source: str | Path,
    sae_id: str | None = None,
    *,
    norm_scaling_factor: float | None = None,
) -> SparseAutoencoder:
    """Load an SAE from a directory that sae-lens 6 saved, or a pretrained release of sae-lens.

    A directory is read without sae-lens; a release needs it.

    Args:
        source: a directory with ``cfg.json`` and ``sae_weights.safetensors``, the name of a
            release, or ``RELEASE:ID``.
        sae_id: the SAE's id within the release, where ``source`` does not contain it.
        norm_scaling_factor: what multiplies the residual stream before the SAE reads it
            (sqrt(d_model) / mean norm). Only for an SAE with
            ``normalize_activations="expected_average_only_in"`` whose files do not hold it.

    Returns:
        The SAE in canonical form: fp32, on the CPU, in the model's residual units.

    Raises:
        ValueError: the files are damaged, or hold something that the canonical form cannot.

    Examples:
        >>> sae = load_sae("gemma-scope-2b-pt-res-canonical:layer_20/width_16k/canonical")
        >>> sae.layer, sae.d_sae
        (20, 16384)
    """
    if sae_id is None and Path(source).is_dir():
        # The place for another format: tell it by a file that only it has.
        return saelens.load_directory(Path(source), norm_scaling_factor)
    if sae_id is None and isinstance(source, str) and ":" in source:
        source, sae_id = source.split(":", maxsplit=1)
    if sae_id is None:
        raise ValueError(f"SAE: expected a directory or RELEASE:ID, got {str(source)!r}")
    return saelens.load_release(str(source), sae_id, norm_scaling_factor)
