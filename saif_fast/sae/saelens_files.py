"""Reading of SAEs that sae-lens 6 stored: a directory, or a pretrained release.

A directory is read without sae-lens, and nothing in it is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import safetensors
from torch import Tensor

from saif_fast.text import read_text

# The first bytes of files that torch.save and pickle write.
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Whitening(NamedTuple):
    """The whitening of an SAE's input, ``z = (x - mean) @ matrix``, in float64."""

    mean: Tensor  # [d_model]
    matrix: Tensor  # [d_model, d_model]
    inverse: Tensor  # [d_model, d_model]


class StoredSae(NamedTuple):
    """An SAE as stored, before any fold."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    norm_scaling_factor: float | None = None
    whitening: Whitening | None = None


def read_directory(path: Path) -> StoredSae:
    """Read the files that ``save_model`` or ``save_inference_model`` of sae-lens wrote.

    Where sae-lens left the statistics of the training's normalizer beside them, these are read too.
    """
    config = _read_json(path / "cfg.json")
    tensors = _read_safetensors(path / "sae_weights.safetensors")
    factor, whitening = None, None
    if (path / "activation_scaler.json").exists():
        factor = _read_json(path / "activation_scaler.json").get("scaling_factor")
    if (path / "activation_whitening.safetensors").exists():
        stored = _read_safetensors(path / "activation_whitening.safetensors")
        names = ("mean", "matrix", "inverse_matrix")
        if set(stored) != set(names):
            raise ValueError(
                f"{path / 'activation_whitening.safetensors'}: expected tensors {sorted(names)}, "
                f"got {sorted(stored)}"
            )
        whitening = Whitening(*(stored[name].double() for name in names))
    return StoredSae(path.resolve().name, config, tensors, factor, whitening)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(read_text(path), type=dict[str, Any])
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; a sae-lens SAE is a directory with cfg.json and "
            "sae_weights.safetensors"
        ) from None
    except (msgspec.DecodeError, OSError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start.startswith(_PICKLES):
            raise ValueError(f"{path}: a pickle or zip archive, not safetensors; it was not loaded")
        with safetensors.safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None


def read_release(release: str, sae_id: str) -> StoredSae:
    """Load an SAE of a pretrained release through sae-lens, which downloads it where needed.

    Raises:
        ValueError: sae-lens is not installed, or could not load it.
    """
    name = f"{release}:{sae_id}"
    try:
        from huggingface_hub.errors import EntryNotFoundError
        from sae_lens import SAE
    except ImportError as error:
        raise ValueError(
            f"SAE {name}: a pretrained release needs sae-lens ({error}); "
            "pip install 'saif-fast[identify]', or give a directory"
        ) from None
    with warnings.catch_warnings():
        # sae-lens warns of a missing norm factor and of processed models. We refuse both.
        warnings.simplefilter("ignore", UserWarning)
        try:
            sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
        except (ValueError, KeyError, OSError, EntryNotFoundError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"SAE {name}: sae-lens could not load it ({reason})") from None
    return StoredSae(name, sae.cfg.to_dict(), sae.state_dict())
