"""Residual stream activations of a transformers model on an instruction's pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saif_fast import hf
from saif_fast.identify.pairs import ContrastPairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class ActivationSet:
    """Residuals after decoder blocks, by layer: fp32, on the CPU, for any SAE of these layers."""

    positive: Mapping[int, Tensor]  # [pairs, d_model] of the last prompt token
    negative: Mapping[int, Tensor]  # [pairs, d_model] without the instruction
    plain: Mapping[int, Tensor]  # [tokens, d_model] of plain text, BOS positions left out
    pairs: ContrastPairs
    model_name: str
    num_layers: int
    chat: bool  # whether the prompts went through the chat template
    plain_name: str = "given"  # which texts ``plain`` is of

    def at(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positive, negative and plain at ``layer``; ValueError where it was not collected."""
        if layer not in self.positive:
            raise ValueError(f"layer: expected one of {sorted(self.positive)}, got {layer}")
        return self.positive[layer], self.negative[layer], self.plain[layer]


def plain_texts() -> list[str]:
    """Everyday English written for this project, to measure the density of latents on."""
    return Path(__file__).with_name("plain_text.txt").read_text(encoding="utf-8").splitlines()


def collect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: ContrastPairs,
    layers: Sequence[int],
    *,
    chat: bool | None = None,
    plain: Sequence[str] | None = None,
    batch_tokens: int = 8192,
) -> ActivationSet:
    """Run the model over the pairs and the plain texts, once for all ``layers``.

    ``chat`` applies the chat template to the pairs' prompts (None: if the tokenizer has one), never
    to the ``plain`` texts (None: :func:`plain_texts`). ``batch_tokens`` of a forward, padding
    included, bound the memory. ValueError for a layer that the model lacks or a template that the
    tokenizer lacks.
    """
    num_layers = len(hf.decoder_layers(model))
    chat = tokenizer.chat_template is not None if chat is None else chat
    # Negatives repeat across wordings; every distinct prompt is run once.
    prompts = list(dict.fromkeys(t for pair in pairs.pairs for t in (pair.positive, pair.negative)))
    ids = hf.encode_texts(tokenizer, hf.chat_texts(tokenizer, prompts) if chat else prompts)
    d_model = model.config.get_text_config().hidden_size
    last = {layer: torch.empty(len(ids), d_model) for layer in layers}
    for batch, _, _, hidden in hf.residuals(model, ids, layers, batch_tokens):
        for layer in layers:
            last[layer][batch] = hidden[layer][:, -1].float().cpu()  # padding is on the left

    kept: dict[int, list[Tensor]] = {layer: [torch.empty(0, d_model)] for layer in layers}
    origin = "built-in everyday English" if plain is None else f"{len(plain)} texts given"
    texts = plain_texts() if plain is None else plain
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    ids = hf.encode_texts(tokenizer, texts)
    for _, tokens, real, hidden in hf.residuals(model, ids, layers, batch_tokens):
        if tokenizer.bos_token_id is not None:
            real = real & (tokens != tokenizer.bos_token_id)  # its residual is like no other's
        for layer in layers:
            kept[layer].append(hidden[layer][real].float().cpu())

    row = {prompt: i for i, prompt in enumerate(prompts)}
    positive = torch.tensor([row[pair.positive] for pair in pairs.pairs])
    negative = torch.tensor([row[pair.negative] for pair in pairs.pairs])
    return ActivationSet(
        positive={layer: last[layer][positive] for layer in layers},
        negative={layer: last[layer][negative] for layer in layers},
        plain={layer: torch.cat(kept[layer]) for layer in layers},
        pairs=pairs,
        model_name=hf.model_name(model),
        num_layers=num_layers,
        chat=chat,
        plain_name=f"{origin}, sha256 {digest[:12]}",
    )
