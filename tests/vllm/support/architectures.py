"""Tiny random models of many architectures, latent sets for them, and a mixed batch of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from embedded_sets import save_sets
from engine_job import Job
from transformers import AutoConfig, AutoModelForCausalLM

from saif_fast.edits import Edit
from saif_fast.hf import run_decoder
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
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDES = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (N_LAYERS // 2),
}
TIED = {"tie_word_embeddings": True}  # vLLM knows no others of these
COHERE = {**TIED, "logit_scale": 2.0}
NO_GROUPS = {"num_key_value_heads": 2}

# By transformers' name of the model type: what differs from SHAPE.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Layers return two tensors, and their sum is the residual stream.
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**TIED, **SLIDES, "query_pre_attn_scalar": 32},
    "gemma3_text": {**TIED, **SLIDES, "query_pre_attn_scalar": 32},
    "qwen3_moe": {**EXPERTS, "num_experts": N_LAYERS, "norm_topk_prob": True},
    "mixtral": {**EXPERTS, "num_local_experts": N_LAYERS},
    "olmoe": {**EXPERTS, **NO_GROUPS, "num_experts": N_LAYERS},
    # Two tensors, and the first is the residual stream.
    "cohere": COHERE,
    "cohere2": {**COHERE, **SLIDES, "sliding_window": 128},  # vLLM's is a token wider
    "exaone4": SLIDES,
    "stablelm": NO_GROUPS,
    # One tensor.
    "gpt2": {},
    # One tensor [1, tokens, d_model], through vLLM's Transformers backend.
    "gpt_neox": NO_GROUPS,
    "phi": NO_GROUPS,
}
TRANSFORMERS_BACKEND = ("gpt_neox", "phi")


def build(model_type: str) -> Any:
    """Make a random model that generates as many tokens as it is asked to."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **ARCHITECTURES[model_type]})
    # Eager attention leaves out no soft cap.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(torch.randn_like(parameter))
    model.generation_config.eos_token_id = None
    return model


def build_sets(model: Any) -> dict[str, LatentSet]:
    """Make sets whose edits are as large as the stream, at a middle and at the last layer."""
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


def save(model_type: str, folder: Path) -> tuple[Any, dict[str, LatentSet], Job]:
    """Write a model and its sets to ``folder``; return the engine's job, without batches."""
    model = build(model_type)
    model.save_pretrained(folder / "model")
    sets = build_sets(model)
    engine = {
        "skip_tokenizer_init": True,
        "max_model_len": SHAPE["max_position_embeddings"],
        "model_impl": "transformers" if model_type in TRANSFORMERS_BACKEND else "vllm",
    }
    job = Job(
        folder / "model",
        set_dir=save_sets(sets, folder),
        engine=engine,
        site=["inspect_in_process"],
    )
    return model, sets, job


def requests() -> dict[str, dict[str, Any]]:
    """Make a mixed batch: constant and live edits, two layers in one request, a window, no sets.

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


def _norms(model: Any) -> dict[int, float]:
    """Measure the stream's mean norm after each steered layer, over the requests' prompts."""
    prompts = [asked["prompt"] for asked in requests().values()]
    found: dict[int, list[torch.Tensor]] = {MIDDLE: [], LAST: []}
    for _, _, real, hidden in run_decoder(model, prompts, [MIDDLE, LAST], max_tokens=512):
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
