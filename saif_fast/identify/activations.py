"""Residual stream activations of a transformers model on an instruction's pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

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


class ResidualSource(Protocol):
    """A model that can be asked for its residual stream after decoder blocks."""

    name: str  # as records have it
    num_layers: int

    def last(self, ids: Sequence[list[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """The last token's residual of each text, by layer: [texts, d_model] fp32, on the CPU."""

    def every(
        self, ids: Sequence[list[int]], layers: Sequence[int], without: int | None
    ) -> dict[int, Tensor]:
        """That of every token but those of id ``without``: [tokens, d_model] fp32, on the CPU."""


class TransformersResiduals:
    """:class:`ResidualSource` of a transformers model, in batches of so many padded tokens."""

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self._model, self._batch_tokens = model, batch_tokens
        self.name, self.num_layers = hf.model_name(model), len(hf.decoder_layers(model))

    def last(self, ids: Sequence[list[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """See :class:`ResidualSource`."""
        d_model = self._model.config.get_text_config().hidden_size
        found = {layer: torch.empty(len(ids), d_model) for layer in layers}
        for batch, _, _, hidden in hf.residuals(self._model, ids, layers, self._batch_tokens):
            for layer in layers:
                found[layer][batch] = hidden[layer][:, -1].float().cpu()  # padding is on the left
        return found

    def every(
        self, ids: Sequence[list[int]], layers: Sequence[int], without: int | None
    ) -> dict[int, Tensor]:
        """See :class:`ResidualSource`."""
        d_model = self._model.config.get_text_config().hidden_size
        kept: dict[int, list[Tensor]] = {layer: [torch.empty(0, d_model)] for layer in layers}
        for _, tokens, real, hidden in hf.residuals(self._model, ids, layers, self._batch_tokens):
            chosen = real if without is None else real & (tokens != without)
            for layer in layers:
                kept[layer].append(hidden[layer][chosen].float().cpu())
        return {layer: torch.cat(rows) for layer, rows in kept.items()}


def collect(
    model: PreTrainedModel | ResidualSource,
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
    included, bound the memory of a transformers model. ValueError for a layer that the model lacks
    or a template that the tokenizer lacks.
    """
    source = TransformersResiduals(model, batch_tokens) if isinstance(model, nn.Module) else model
    chat = tokenizer.chat_template is not None if chat is None else chat
    # Negatives repeat across wordings; every distinct prompt is run once.
    prompts = list(dict.fromkeys(t for pair in pairs.pairs for t in (pair.positive, pair.negative)))
    ids = hf.encode_texts(tokenizer, hf.chat_texts(tokenizer, prompts) if chat else prompts)
    last = source.last(ids, layers)

    origin = "built-in everyday English" if plain is None else f"{len(plain)} texts given"
    texts = plain_texts() if plain is None else plain
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()

    row = {prompt: i for i, prompt in enumerate(prompts)}
    positive = torch.tensor([row[pair.positive] for pair in pairs.pairs])
    negative = torch.tensor([row[pair.negative] for pair in pairs.pairs])
    return ActivationSet(
        positive={layer: last[layer][positive] for layer in layers},
        negative={layer: last[layer][negative] for layer in layers},
        # The residual of BOS is like no other's.
        plain=source.every(hf.encode_texts(tokenizer, texts), layers, tokenizer.bos_token_id),
        pairs=pairs,
        model_name=source.name,
        num_layers=source.num_layers,
        chat=chat,
        plain_name=f"{origin}, sha256 {digest[:12]}",
    )
