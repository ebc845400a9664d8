"""A random model, tokenizer and SAE that need no data, and steering as the formula says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saif_fast.edits import Edit
from saif_fast.latent_set import LatentSet, SiteTensors
from saif_fast.records import Latent, Provenance
from saif_fast.sae import SparseAutoencoder

D_MODEL, N_LAYERS, D_SAE = 32, 3, 48
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = (*(f"w{i}" for i in range(40)), "User", "Assistant")


def tiny_model(dtype: torch.dtype = torch.float32, n_layers: int = N_LAYERS) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.name_or_path = "made/tiny"
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_tokenizer(adds_bos: bool = True, chat: bool = True) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    if adds_bos:
        backend.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    if chat:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %} User {{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %} Assistant{% endif %}"
        )
    return tokenizer


def tiny_sae(layer: int = N_LAYERS - 1, seed: int = 0, **changes: object) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    fields: dict[str, object] = {
        "W_enc": normal(D_MODEL, D_SAE) / 4,
        "b_enc": normal(D_SAE) / 10,
        "threshold": normal(D_SAE).abs() / 10,
        "W_dec": normal(D_SAE, D_MODEL),
        "b_dec": normal(D_MODEL) / 10,
        "layer": layer,
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "architecture": "jumprelu",
        "name": "tiny",
    }
    return SparseAutoencoder(**{**fields, **changes})  # type: ignore[arg-type]


def edited(edits: Sequence[str], layer: int = N_LAYERS - 1, seed: int = 0) -> LatentSet:
    """A set with these edits on latents 0, 1, ... of :func:`tiny_sae`."""
    latents = [Latent(index=i, edit=Edit.parse(text)) for i, text in enumerate(edits)]
    return LatentSet.from_sae(tiny_sae(layer, seed), latents, num_layers=N_LAYERS)


def merged(*sets: LatentSet) -> LatentSet:
    """One set with the sites of several."""
    sites: list[SiteTensors] = sorted(
        (site for latent_set in sets for site in latent_set.sites), key=lambda s: s.site.layer
    )
    return LatentSet(tuple(sites), D_MODEL, N_LAYERS, Provenance(method="made"))


def dense(layer: int, seed: int = 5) -> LatentSet:
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return LatentSet.from_vector(vector, layer=layer, num_layers=N_LAYERS)


@dataclass(frozen=True)
class Ask:
    """What a row asks for, spelled out: the naive steering knows nothing of our request types."""

    sets: Mapping[str, float] = field(default_factory=dict)
    prompt: bool = False
    start: int = 0
    stop: int = 10**9
    omega: float = 0.0
    power: float = 3.0


def naive_change(x: list[float], edit: Edit, site: SiteTensors, i: int) -> list[float]:
    """One latent's change of one residual vector, in Python floats, by the table in concepts.md."""
    e, d = site.W_enc[i].tolist(), site.W_dec[i].tolist()
    pre = sum(a * b for a, b in zip(x, e, strict=True)) + site.b_enc[i].item()
    a = pre if pre > site.threshold[i].item() else 0.0
    becomes: dict[str, Callable[[], float]] = {
        "add": lambda: a + edit.value,
        "clamp": lambda: edit.value,
        "at_least": lambda: max(a, edit.value),
        "scale": lambda: edit.value * a,
        "ablate": lambda: 0.0,
        "project": lambda: edit.value,
    }
    amount = becomes[edit.kind]() - a
    if edit.gated and a <= 0:
        amount = 0.0
    return [amount * value for value in d]


def naive_scale(position: int, prompt_len: int, ask: Ask) -> float:
    generated = position - (prompt_len - 1)
    if generated < 0:
        return 1.0 if ask.prompt else 0.0
    if not ask.start <= generated < ask.stop:
        return 0.0
    return (1.0 + ask.omega * (generated - ask.start)) ** -ask.power


def naive_steer(
    hidden: Tensor, layer: int, prompt_len: int, ask: Ask, sets: Mapping[str, LatentSet]
) -> Tensor:
    """hidden [tokens, d_model] of one unpadded sequence after ``layer``, steered token by token."""
    out = hidden.clone()
    for position in range(hidden.shape[0]):
        x = hidden[position].double().tolist()
        total = [0.0] * len(x)
        scale = naive_scale(position, prompt_len, ask)
        if scale == 0.0:
            continue
        for name, strength in ask.sets.items():
            for site in sets[name].sites:
                if site.site.layer != layer:
                    continue
                changes = [
                    naive_change(x, latent.edit, site, i)
                    for i, latent in enumerate(site.site.latents)
                ]
                if site.vector is not None:
                    changes.append(site.vector.tolist())
                for change in changes:
                    total = [t + scale * strength * c for t, c in zip(total, change, strict=True)]
        out[position] = (torch.tensor(x) + torch.tensor(total)).to(hidden.dtype)
    return out


def naive_logits(
    model: LlamaForCausalLM,
    tokens: Sequence[int],
    prompt_len: int,
    ask: Ask,
    sets: Mapping[str, LatentSet],
) -> Tensor:
    """Logits [tokens, vocabulary] of one sequence: no batch, no padding, no cache."""
    handles = []
    for layer, block in enumerate(model.model.layers):

        def hook(module: object, args: object, output: Tensor, layer: int = layer) -> Tensor:
            return naive_steer(output[0], layer, prompt_len, ask, sets)[None]

        handles.append(block.register_forward_hook(hook))
    try:
        with torch.no_grad():
            return model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def naive_generate(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    ask: Ask,
    sets: Mapping[str, LatentSet],
    n_tokens: int,
) -> tuple[list[int], Tensor]:
    """Greedy tokens, and the logits [n_tokens, vocabulary] that they come from."""
    tokens, logits = list(prompt), []
    for _ in range(n_tokens):
        logits.append(naive_logits(model, tokens, len(prompt), ask, sets)[-1])
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(logits)
