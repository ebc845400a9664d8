"""Residual stream activations of a model on an instruction's pairs."""

from __future__ import annotations

import hashlib
import itertools
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from saif_fast import hf
from saif_fast.identify.pairs import ContrastPairs
from saif_fast.model_info import ModelInfo
from saif_fast.text import read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_TOKENS = 8192


# Where a pair is read: at the last prompt token (arXiv 2502.11356), at the tokens of the model's
# replies, or at those of a reply and of the same one rewritten so that it follows.
Reading = Literal["last", "reply", "rewritten"]


@dataclass(frozen=True, eq=False)
class ActivationSet:
    """Residuals after decoder blocks by layer: fp32, on the CPU, for any SAE of these layers.

    Row i of ``positive`` is compared with row i of ``negative``. Read at the last prompt token, a
    pair has one row. Read at replies, it has a row for each token of the shorter reply.
    """

    positive: Mapping[int, Tensor]  # [rows, d_model] with the instruction
    negative: Mapping[int, Tensor]  # [rows, d_model] without it
    plain: Mapping[int, Tensor]  # [tokens, d_model] of plain texts, without BOS
    pairs: ContrastPairs
    model_name: str
    num_layers: int
    chat: bool  # whether the prompts went through the chat template
    plain_name: str = "given"  # which texts ``plain`` comes from
    stored_name: str | None = None  # the model's, as in ``ModelInfo``
    reading: Reading = "last"

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

    def read(
        self, ids: Sequence[list[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return residuals by layer: [number of positions, d_model] fp32, on the CPU.

        ``positions`` are token indices, from 0, one sequence per text of ``ids``. The residuals are
        in the order of the texts, and of the positions within a text.
        """


class TransformersResiduals:
    """A :class:`ResidualSource` that runs a transformers model, ``batch_tokens`` per forward."""

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self._model, self._batch_tokens = model, batch_tokens
        hf.decoder_layers(model)  # refuses a model whose blocks are not found
        self.model = ModelInfo.from_config(model.config)

    def read(
        self, ids: Sequence[list[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """See :class:`ResidualSource`."""
        ends = list(itertools.accumulate(map(len, positions), initial=0))
        found = {layer: torch.empty(ends[-1], self.model.d_model) for layer in layers}
        for batch, tokens, _, hidden in hf.run_decoder(
            self._model, ids, layers, self._batch_tokens
        ):
            rows: list[int] = []
            columns: list[int] = []
            places: list[int] = []
            for row, i in enumerate(batch):
                padding = tokens.shape[1] - len(ids[i])  # on the left
                rows += [row] * len(positions[i])
                columns += [padding + position for position in positions[i]]
                places += range(ends[i], ends[i + 1])
            for layer in layers:
                found[layer][places] = hidden[layer][rows, columns].float().cpu()
        return found


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
    return collect_readings(
        model, tokenizer, pairs, {}, layers, chat=chat, plain=plain, batch_tokens=batch_tokens
    )["last"]


def collect_readings(
    model: PreTrainedModel | ResidualSource,
    tokenizer: PreTrainedTokenizerBase,
    pairs: ContrastPairs,
    replies: Mapping[str, Sequence[int]],
    layers: Sequence[int],
    *,
    chat: bool | None = None,
    plain: Sequence[str] | None = None,
    batch_tokens: int = _BATCH_TOKENS,
) -> dict[Reading, ActivationSet]:
    """Run the model over the pairs, their replies and the plain texts, once for all ``layers``.

    Args:
        model: a transformers model, or another source of residuals such as ``saif_vllm.residuals``.
        tokenizer: the model's.
        pairs: prompts with and without the instruction.
        replies: token ids of the model's replies, by prompt (``positive`` or ``negative`` of a
            pair). A pair of which a side has no reply is read at its last prompt token only.
        layers: the decoder blocks after which residuals are collected.
        chat: apply the chat template to the pairs' prompts; None = if the tokenizer has one.
        plain: as in :func:`collect`.
        batch_tokens: as in :func:`collect`.

    Returns:
        The activations at the last prompt token, and those at the replies' tokens if a pair has
        replies to both its sides.

    Raises:
        ValueError: as :func:`collect`.

    Examples:
        >>> readings = collect_readings(model, tokenizer, pairs, replies, layers=[12, 20])
        >>> vectors = [diff_in_means(activations, 20) for activations in readings.values()]
    """
    source = residual_source(model, batch_tokens)
    chat = tokenizer.chat_template is not None if chat is None else chat
    prompts = encode_pairs(tokenizer, pairs, chat=chat, context=source.model.context)
    texts = plain_texts() if plain is None else plain
    plain_ids = hf.encode_texts(tokenizer, texts)
    hf.check_lengths(plain_ids, source.model.context, lambda i: f"plain text {i}")

    ids = [[*prompts[prompt], *replies.get(prompt, ())] for prompt in prompts]
    hf.check_lengths(ids, source.model.context, lambda i: f"prompt and reply {i}")
    # The residual of a reply's last token yields nothing that was read, so it is not read either.
    positions = [
        range(len(own) - 1, max(len(own), len(row) - 1))
        for own, row in zip(prompts.values(), ids, strict=True)
    ]
    starts = list(itertools.accumulate(map(len, positions), initial=0))
    spans = {
        prompt: range(start, start + len(at))
        for prompt, start, at in zip(prompts, starts, positions, strict=False)
    }
    rows: dict[Reading, list[tuple[int, int]]] = {"last": [], "reply": []}
    for pair in pairs.pairs:
        last, *replied = zip(spans[pair.positive], spans[pair.negative], strict=False)
        rows["last"].append(last)
        rows["reply"] += replied
    read = source.read(ids, positions, layers)
    # Without BOS, whose residual is unlike that of any other token.
    of_plain = source.read(plain_ids, [_without_bos(row, tokenizer) for row in plain_ids], layers)

    origin = "built-in everyday English" if plain is None else f"{len(plain)} texts given"
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    found = {}
    for reading, listed in rows.items():
        if not listed:
            continue
        positive, negative = (list(side) for side in zip(*listed, strict=True))
        found[reading] = ActivationSet(
            positive={layer: read[layer][positive] for layer in layers},
            negative={layer: read[layer][negative] for layer in layers},
            plain=of_plain,
            pairs=pairs,
            model_name=source.model.name,
            num_layers=source.model.num_layers,
            chat=chat,
            plain_name=f"{origin}, sha256 {digest[:12]}",
            stored_name=source.model.stored_name,
            reading=reading,
        )
    return found


def _without_bos(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [i for i, token in enumerate(ids) if token != tokenizer.bos_token_id]


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
