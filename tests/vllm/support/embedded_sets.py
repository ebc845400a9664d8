"""Latent sets for the embedded model: every edit at its middle and its last layer, and requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saif_fast.edits import Edit
from saif_fast.embedded import model_path, sae_path
from saif_fast.hf import chat_texts, encode_texts
from saif_fast.latent_set import LatentSet
from saif_fast.records import Latent, Provenance
from saif_fast.sae import load_sae
from saif_fast.set_dir import SetDirectory
from saif_fast.tasks.embedded import embedded_task

MIDDLE, LAST, N_LAYERS = 1, 2, 3
LAYERS = {"middle": MIDDLE, "last": LAST}
N_TOKENS = 24
# Far from what the latents do by themselves, so that each set changes the text; a test sees to it.
EDITS = {
    "add": "add:12",
    "add_gated": "add:12@gated",
    "clamp": "clamp:20",
    "clamp_gated": "clamp:20@gated",
    "at_least": "at_least:15",
    "scale": "scale:-2",
    "ablate": "ablate",
    "project": "project:20",
}


def load_model() -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # as many tokens as asked for, like vLLM's here
    return model


def prompts(n: int = 6) -> list[list[int]]:
    """Return token ids of user turns, as both runtimes get them."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    contents = embedded_task("french").contents("report")[:n]
    return encode_texts(tokenizer, chat_texts(tokenizer, contents))


def build_sets(model: Any) -> dict[str, LatentSet]:
    """Make ``<edit>_<where>`` for every edit and both layers, a dense vector each, one at both."""
    sets: dict[str, LatentSet] = {}
    for where, layer in LAYERS.items():
        sae = load_sae(sae_path(where))
        x = _generated_stream(model, layer)
        # Latents that are active while the model answers: ablating others would change nothing.
        active = sae.encode(x).sum(0).topk(6).indices.tolist()
        silent = [i for i in range(sae.d_sae) if i not in active][:2]
        for name, edit in EDITS.items():
            latents = [Latent(index=i, edit=Edit.parse(edit)) for i in (*active, *silent)]
            sets[f"{name}_{where}"] = LatentSet.from_sae(sae, latents, num_layers=N_LAYERS)
        direction = torch.randn(sae.d_model, generator=torch.Generator().manual_seed(layer))
        vector = 2.0 * x.norm(dim=-1).mean() * direction / direction.norm()
        sets[f"vector_{where}"] = LatentSet.from_vector(vector, layer=layer, num_layers=N_LAYERS)
    both = (*sets["clamp_middle"].sites, *sets["add_last"].sites)
    sets["both"] = LatentSet(both, sae.d_model, N_LAYERS, Provenance(method="made"))
    return sets


def _generated_stream(model: Any, layer: int) -> torch.Tensor:
    """Return the stream [tokens, d_model] after ``layer`` of what the model generates unsteered."""
    seen: list[torch.Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[0, -1])

    handle = model.model.layers[layer].register_forward_hook(hook)
    for prompt in prompts():
        ids = torch.tensor([prompt])
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=N_TOKENS
        )
    handle.remove()
    return torch.stack(seen)


def save_sets(sets: dict[str, LatentSet], folder: Path) -> Path:
    for name, latent_set in sets.items():
        latent_set.save(SetDirectory(folder).path(name))
    return folder


def cases() -> dict[str, dict[str, Any] | None]:
    """Return named ``extra_args``: each set alone, combinations, windows; some unsteered."""
    asked: dict[str, dict[str, Any] | None] = {"unsteered_first": None}
    for where in LAYERS:
        asked |= {f"{edit}_{where}": {"saif": f"{edit}_{where}"} for edit in (*EDITS, "vector")}
        asked[f"unsteered_{'short' if where == 'middle' else 'long'}"] = None
    asked |= {
        "both": {"saif": "both"},
        "unsteered": None,
        "strength": {"saif": "add_last*0.5"},
        "negative": {"saif": "vector_middle*-0.7"},
        "two_sets": {"saif": "add_last*0.6 + vector_last*0.4"},
        "two_layers": {"saif": "clamp_middle*0.5 + add_last"},
        "three_sets": {"saif": "add_middle + vector_last*0.3 + scale_last"},
        "prompt": {"saif": "vector_middle", "saif_scope": "prompt"},
        "all": {"saif": "vector_middle*0.5", "saif_scope": "all"},
        "start": {"saif": "add_last", "saif_start": 3},
        "stop": {"saif": "add_last", "saif_stop": 4},
        "window": {"saif": "clamp_middle", "saif_start": 2, "saif_stop": 9},
        "decay": {"saif": "vector_last", "saif_decay": 0.2},
        "decay_power": {"saif": "vector_middle", "saif_start": 1, "saif_decay": "0.5,1"},
        "unsteered_last": None,
    }
    return asked


def requests() -> dict[str, dict[str, Any]]:
    """Make one request per case, over a few prompts in turn."""
    given = prompts()
    asked = {
        name: {
            "prompt": given[i % len(given)],
            "max_tokens": N_TOKENS,
            "extra_args": extra_args,
        }
        for i, (name, extra_args) in enumerate(cases().items())
    }
    # Shorter and longer than their neighbours: the batch changes its shape around them.
    asked["unsteered_short"] |= {"prompt": given[0][:5], "max_tokens": N_TOKENS // 3}
    asked["unsteered_long"] |= {"prompt": [t for p in given for t in p], "max_tokens": N_TOKENS + 4}
    return asked
