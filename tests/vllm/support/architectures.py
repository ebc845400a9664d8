"""Tiny random models of many architectures, latent sets for them, and a mixed batch of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from saif_fast.edits import Edit
from saif_fast.hf import residuals
from saif_fast.latent_set import LatentSet
from saif_fast.records import Latent
from saif_fast.sae import SparseAutoencoder

D_MODEL, N_LAYERS, VOCABULARY = 64, 4, 96
MIDDLE, LAST = 1, N_LAYERS - 1
N_TOKENS, WINDOW = 12, 8
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # what CPU attention wants
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # far from ties
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# As many experts as layers: their number must not tell which list of modules is the decoder's.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers, and how vLLM's decoder layers return the residual stream.

    Attributes:
        config: beside :data:`SHAPE`.
        stream: name of a ``saif_vllm.structure.Stream``.
        structure: one tensor or two, and their dimensions.
    """

    model_type: str
    stream: str
    config: Mapping[str, Any]

    def build(self) -> Any:
        """A model that generates as many tokens as it is asked to."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **{**SHAPE, **self.config})
        # Soft caps, sinks and windows: eager attention leaves out none.
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def _slides(every: str = "sliding_attention") -> dict[str, Any]:
    kinds = [every, "full_attention"] * N_LAYERS
    return {"sliding_window": WINDOW, "layer_types": kinds[:N_LAYERS]}


ARCHITECTURES = {
    "llama": Architecture("llama", "SUM", {}),
    "mistral": Architecture("mistral", "SUM", {"sliding_window": WINDOW}),
    "qwen2": Architecture("qwen2", "SUM", {}),
    "qwen3": Architecture("qwen3", "SUM", {}),
    "gemma2": Architecture("gemma2", "SUM", {**_slides(), "query_pre_attn_scalar": 32}),
    "gemma3": Architecture("gemma3_text", "SUM", {**_slides(), "query_pre_attn_scalar": 32}),
    "cohere": Architecture("cohere", "FIRST", {"tie_word_embeddings": True, "logit_scale": 2.0, "use_qk_norm": False}),
    "cohere2": Architecture("cohere2", "FIRST", {"tie_word_embeddings": True, **_slides(), "logit_scale": 2.0}),
    "stablelm": Architecture("stablelm", "FIRST", {"num_key_value_heads": 2}),
    "exaone4": Architecture("exaone4", "FIRST", {**_slides(), "sliding_window_pattern": None}),
    "gpt2": Architecture("gpt2", "FIRST", {}),
    "qwen3_moe": Architecture("qwen3_moe", "SUM", {**EXPERTS, "num_experts": N_LAYERS}),
    "mixtral": Architecture("mixtral", "SUM", {**EXPERTS, "num_local_experts": N_LAYERS}),
    "olmoe": Architecture("olmoe", "SUM", {**EXPERTS, "num_experts": N_LAYERS, "num_key_value_heads": 2}),
    # Through vLLM's Transformers backend: [1, tokens, d_model].
    "gpt_neox": Architecture("gpt_neox", "FIRST", {"num_key_value_heads": 2}),
    "phi": Architecture("phi", "FIRST", {"num_key_value_heads": 2}),
}


def build_sets(model: Any) -> dict[str, LatentSet]:
    """Sets whose edits are as large as the residual stream, at a middle and at the last layer."""
    sae = {layer: _random_sae(layer) for layer in (MIDDLE, LAST)}
    norm = _norms(model)

    def edited(layer: int, edit: str, n: int = 3) -> LatentSet:
        latents = [Latent(index=i, edit=Edit.parse(edit)) for i in range(n)]
        return LatentSet.from_sae(sae[layer], latents, num_layers=N_LAYERS)

    def direction(seed: int) -> torch.Tensor:
        drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
        return drawn / drawn.norm()

    vector = 1.5 * norm[LAST] * direction(1)
    return {
        "vector_last": LatentSet.from_vector(vector, layer=LAST, num_layers=N_LAYERS),
        "clamp_middle": edited(MIDDLE, f"clamp:{norm[MIDDLE]:.3f}"),
        "project_middle": LatentSet.from_direction(
            direction(2), 1.5 * norm[MIDDLE], layer=MIDDLE, num_layers=N_LAYERS
        ),
        "clamp_last": edited(LAST, f"clamp:{norm[LAST]:.3f}"),
    }


def requests() -> dict[str, dict[str, Any]]:
    """A mixed batch: constant and live edits, two layers in one request, a window, unsteered ones.

    Prompts longer and shorter than the sliding windows.
    """
    asked: dict[str, dict[str, Any] | None] = {
        "unsteered": None,
        "vector_last": {"saif": "vector_last"},
        "clamp_middle": {"saif": "clamp_middle"},
        "project_middle": {"saif": "project_middle", "saif_scope": "all"},
        "two_sets": {"saif": "vector_last*0.5 + clamp_middle*0.7"},
        "window": {"saif": "clamp_last", "saif_start": 2, "saif_stop": 7},
        "unsteered_last": None,
    }
    generator = torch.Generator().manual_seed(3)
    return {
        name: {
            "prompt": torch.randint(1, VOCABULARY, (4 + 5 * i,), generator=generator).tolist(),
            "max_tokens": N_TOKENS,
            "extra_args": extra_args,
        }
        for i, (name, extra_args) in enumerate(asked.items())
    }


def save(model: Any, folder: Path) -> Path:
    """As a directory that vLLM serves, by the class that transformers knows it by."""
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


def _norms(model: Any) -> dict[int, float]:
    """Mean norm of the residual stream after each steered layer, over the requests' prompts."""
    prompts = [asked["prompt"] for asked in requests().values()]
    found: dict[int, list[torch.Tensor]] = {MIDDLE: [], LAST: []}
    for _, _, real, hidden in residuals(model, prompts, [MIDDLE, LAST], max_tokens=512):
        for layer, norms in found.items():
            norms.append(hidden[layer][real].norm(dim=-1))
    return {layer: float(torch.cat(norms).mean()) for layer, norms in found.items()}


def _random_sae(layer: int, d_sae: int = 8) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(layer)
    encoder, decoder = (
        torch.nn.functional.normalize(torch.randn(d_sae, D_MODEL, generator=generator), dim=-1)
        for _ in range(2)
    )
    return SparseAutoencoder(
        W_enc=encoder.T.contiguous(),
        b_enc=torch.zeros(d_sae),
        threshold=torch.zeros(d_sae),
        W_dec=decoder,
        b_dec=torch.zeros(D_MODEL),
        layer=layer,
        hook_name=f"blocks.{layer}.hook_resid_post",
        architecture="jumprelu",
        name="random",
    )
