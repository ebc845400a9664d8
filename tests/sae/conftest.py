from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

D_MODEL, D_SAE = 6, 10

WriteSae = Callable[..., Path]


def random_tensors(architecture: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "W_enc": normal(D_MODEL, D_SAE),
        "W_dec": normal(D_SAE, D_MODEL),
        "b_dec": normal(D_MODEL),
    }
    own = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}
    for name in own.get(architecture, ("b_enc",)):
        tensors[name] = normal(D_SAE)
    return tensors


def sae_config(architecture: str, **changes: Any) -> dict[str, Any]:
    """cfg.json of sae-lens 6; keys in ``metadata`` are added to those that are there."""
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post"}
    config: dict[str, Any] = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": architecture,
    }
    if architecture == "topk":
        config |= {"k": 3, "rescale_acts_by_decoder_norm": False}
    metadata |= changes.pop("metadata", {})
    return {**config, **changes, "metadata": metadata}


@pytest.fixture
def write_sae(tmp_path: Path) -> WriteSae:
    """Write an SAE directory by hand: no sae-lens needed."""

    def write(
        architecture: str = "standard",
        *,
        tensors: dict[str, Tensor] | None = None,
        config: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        directory = tmp_path / "sae"
        directory.mkdir(exist_ok=True)
        config = sae_config(architecture, **changes) if config is None else config
        (directory / "cfg.json").write_text(json.dumps(config))
        tensors = random_tensors(architecture) if tensors is None else tensors
        save_file(tensors, directory / "sae_weights.safetensors")
        return directory

    return write


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, D_MODEL, generator=torch.Generator().manual_seed(1))
