"""Residual stream activations of a model on an instruction's pairs."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from saif_fast import hf
from saif_fast.identify.pairs import ContrastPairs
from saif_fast.model_info import ModelInfo
from saif_fast.text import read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class ActivationSet:
    """Residuals after decoder blocks by layer: fp32, on the CPU, for any SAE of these layers."""

    positive: Mapping[int, Tensor]  # [pairs, d_model] of the last prompt token
    negative: Mapping[int, Tensor]  # [pairs, d_model] without the instruction
    plain: Mapping[int, Tensor]  # [tokens, d_model] of plain texts, without BOS
    pairs: ContrastPairs
    model_name: str
    num_layers: int
    chat: bool  # whether the prompts went through the chat template
    plain_name: str = "given"  # which texts ``plain`` comes from
    stored_name: str | None = None  # the model's, as in ``ModelInfo``

    def at(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return positive, negative and plain at ``layer``; ValueError if it was not collected."""
        if layer not in self.positive:
            raise ValueError(f"layer: expected one of {sorted(self.positive)}, got {layer}")
        return self.positive[layer], self.negative[layer], self.plain[layer]

    @property
    def model(self) -> ModelInfo:
        """The model, as far as SAEs are compared with it."""
        width = next(iter(self.positive.values())).shape[1]
        return ModelInfo(self.model_name, width, self.num_layers, stored_name=self.stored_name)


def plain_texts() -> list[str]:
    """Read everyday English, written for this project, on which density is measured."""
    return [line.text for line in read_lines(Path(__file__).with_name("plain_text.txt"))]


class ResidualSource(Protocol):
    """A model that gives its residual stream after decoder blocks."""

    model: ModelInfo

    def last(self, ids: Sequence[list[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """Return the last token's residual of each text by layer: [texts, d_model] fp32, CPU."""

    def every(
        self, ids: Sequence[list[int]], layers: Sequence[int], without: int | None
    ) -> dict[int, Tensor]:
        """Return residuals of every token except those with id ``without`` (the BOS), by layer.

        They are [tokens, d_model] fp32, on the CPU.
        """


class TransformersResiduals:
    """A :class:`ResidualSource` that runs a transformers model, ``batch_tokens`` per forward."""

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self._model, self._batch_tokens = model, batch_tokens
        hf.decoder_layers(model)  # refuses a model whose blocks are not found
        self.model = ModelInfo.from_config(model.config)

    def last(self, ids: Sequence[list[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """See :class:`ResidualSource`."""
        found = {layer: torch.empty(len(ids), self.model.d_model) for layer in layers}
        for batch, _, _, hidden in hf.run_decoder(self._model, ids, layers, self._batch_tokens):
            for layer in layers:
                found[layer][batch] = hidden[layer][:, -1].float().cpu()  # padding is on the left
        return found

    def every(
        self, ids: Sequence[list[int]], layers: Sequence[int], without: int | None
    ) -> dict[int, Tensor]:
        """See :class:`ResidualSource`."""
        nothing = torch.empty(0, self.model.d_model)
        kept: dict[int, list[Tensor]] = {layer: [nothing] for layer in layers}
        for _, tokens, real, hidden in hf.run_decoder(self._model, ids, layers, self._batch_tokens):
            chosen = real if without is None else real & (tokens != without)
            for layer in layers:
                kept[layer].append(hidden[layer][chosen].float().cpu())
        return {layer: torch.cat(rows) for layer, rows in kept.items()}


def residual_source(
    model: PreTrainedModel | ResidualSource, batch_tokens: int = _BATCH_TOKENS
) -> ResidualSource:
    """Return a transformers model as a source; return a source as it is."""
    return TransformersResiduals(model, batch_tokens) if isinstance(model, nn.Module) else model


def collect(
    model: PreTrainedModel | ResidualSource,
    tokenizer: PreTrainedTokenizerBase,
    pairs: ContrastPairs,
    layers: Sequence[int],
    *,
    chat: bool | None = None,
    plain: Sequence[str] | None = None,
    batch_tokens: int = _BATCH_TOKENS,
) -> ActivationSet:
    """Run the model over the pairs and the plain texts, once for all ``layers``.

    Args:
        model: a transformers model, or another source of residuals such as ``saif_vllm.residuals``.
        tokenizer: the model's.
        pairs: prompts with and without the instruction.
        layers: the decoder blocks after which residuals are collected.
        chat: apply the chat template to the pairs' prompts; None = if the tokenizer has one.
        plain: texts on which the density of latents is measured, never through the chat template;
            None = :func:`plain_texts`.
        batch_tokens: tokens per forward of a transformers model, padding included; bounds memory.

    Raises:
        ValueError: before the model runs: it lacks a layer or a template, a text is empty or fills
            the context, or the two sides of a pair are the same tokens.

    Examples:
        >>> pairs = build_pairs(contents, ["Answer in French.", "Please reply in French."])
        >>> activations = collect(model, tokenizer, pairs, layers=[12, 20])
        >>> positive, negative, plain = activations.at(20)
    """
    source = residual_source(model, batch_tokens)
    chat = tokenizer.chat_template is not None if chat is None else chat
    prompts = encode_pairs(tokenizer, pairs, chat=chat, context=source.model.context)
    texts = plain_texts() if plain is None else plain
    plain_ids = hf.encode_texts(tokenizer, texts)
    hf.check_lengths(plain_ids, source.model.context, lambda i: f"plain text {i}")
    last = source.last(list(prompts.values()), layers)

    origin = "built-in everyday English" if plain is None else f"{len(plain)} texts given"
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()

    index = {prompt: i for i, prompt in enumerate(prompts)}
    positive = torch.tensor([index[pair.positive] for pair in pairs.pairs])
    negative = torch.tensor([index[pair.negative] for pair in pairs.pairs])
    return ActivationSet(
        positive={layer: last[layer][positive] for layer in layers},
        negative={layer: last[layer][negative] for layer in layers},
        # Without BOS, whose residual is unlike that of any other token.
        plain=source.every(plain_ids, layers, tokenizer.bos_token_id),
        pairs=pairs,
        model_name=source.model.name,
        num_layers=source.model.num_layers,
        chat=chat,
        plain_name=f"{origin}, sha256 {digest[:12]}",
        stored_name=source.model.stored_name,
    )


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: ContrastPairs, *, chat: bool, context: int | None
) -> dict[str, list[int]]:
    """Tokenize every distinct prompt of the pairs. Negatives are shared by several wordings.

    Args:
        tokenizer: the model's.
        pairs: prompts with and without the instruction.
        chat: apply the chat template.
        context: the model's context in tokens; None = not known.

    Returns:
        Token ids by prompt.

    Raises:
        ValueError: a side of a pair is empty or fills the context, or the two sides are the same
            tokens (the chat template may drop the content). The message names the pair.

    Examples:
        >>> ids = encode_pairs(tokenizer, pairs, chat=True, context=8192)
        >>> ids[pairs.pairs[0].positive]
    """
    prompts = list(dict.fromkeys(t for pair in pairs.pairs for t in (pair.positive, pair.negative)))
    rendered = hf.chat_texts(tokenizer, prompts) if chat else prompts
    ids = dict(zip(prompts, hf.encode_texts(tokenizer, rendered), strict=True))
    sides = [
        (pairs.name(i), side, getattr(pair, side))
        for i, pair in enumerate(pairs.pairs)
        for side in ("positive", "negative")
    ]

    def name(index: int) -> str:
        pair, side, prompt = sides[index]
        return f"{pair}: {side} {reprlib.repr(prompt)}"

    hf.check_lengths([ids[prompt] for _, _, prompt in sides], context, name)
    after = " after the chat template" if chat else ""
    for i, pair in enumerate(pairs.pairs):
        if (same := ids[pair.positive]) == ids[pair.negative]:
            raise ValueError(
                f"{pairs.name(i)}: expected sides that differ in tokens{after}, got the same "
                f"{len(same)} of {reprlib.repr(pair.positive)} and {reprlib.repr(pair.negative)}"
            )
    return ids
