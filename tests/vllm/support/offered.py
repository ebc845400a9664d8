"""A catalog and core requests without an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from saif_fast.banks import HookedModel
from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory
from saif_vllm.catalog import SetCatalog
from saif_vllm.config import SteeringConfig


def config(**changes: Any) -> SteeringConfig:
    values: dict[str, Any] = {
        "set_dir": "/sets",
        "layers": (1, 2),
        "max_sets": 32,
        "max_latents": 1024,
        "max_sets_per_request": 4,
        "max_strength": 10.0,
        "warn_dose": None,
        "max_dose": None,
        "max_captures": 0,
        "version": "1",
    }
    return SteeringConfig(**{**values, **changes})


def catalog(
    folder: Path, d_model: int = 64, dtype: torch.dtype = torch.float32, **changes: Any
) -> SetCatalog:
    asked = config(**changes)
    return SetCatalog(SetDirectory(folder), asked, HookedModel(asked.layers, d_model, 3, dtype))


def vector(value: float, layer: int = 2, d_model: int = 64) -> LatentSet:
    return LatentSet.from_vector(torch.full((d_model,), value), layer=layer, num_layers=3)


def core_request(extra_args: object, request_id: str = "0-abc", **fields: Any) -> Any:
    """Make what the core reads of an ``EngineCoreRequest``."""
    known = {
        "sampling_params": SimpleNamespace(extra_args=extra_args),
        "external_req_id": request_id.partition("-")[0],
        "resumable": False,
    }
    return SimpleNamespace(request_id=request_id, **{**known, **fields})
