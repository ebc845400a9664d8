"""A LoRA adapter for the embedded model, and the model with it merged into its weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")


def save(model: Any, folder: Path) -> Any:
    """Write an adapter of random weights as PEFT does; the merged copy of ``model``."""
    merged, tensors = copy.deepcopy(model), {}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, linear in merged.named_modules():
            if name.rpartition(".")[2] not in TARGETS:
                continue
            d_out, d_in = linear.weight.shape
            A = torch.randn(RANK, d_in, generator=generator) / d_in**0.5
            B = torch.randn(d_out, RANK, generator=generator) * 0.04
            linear.weight += ALPHA / RANK * B @ A
            tensors[f"base_model.model.{name}.lora_A.weight"] = A
            tensors[f"base_model.model.{name}.lora_B.weight"] = B
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": TARGETS,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return merged
