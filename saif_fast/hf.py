"""Access to a transformers model and its tokenizer: blocks, token ids, residual streams."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saif_fast.model_info import ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks of a model; the output of block N is ``resid_post`` of layer N.

    The plugin finds a vLLM model's blocks by other rules: ``saif_vllm``'s structure probe.

    Raises:
        ValueError: the model is not a decoder whose blocks are one list.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    found = [
        child
        for child in model.get_decoder().children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    if model.config.is_encoder_decoder or len(found) != 1:
        raise ValueError(
            f"model: expected a decoder-only model with one list of {num_layers} blocks, "
            f"got {type(model).__name__}"
        )
    return found[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts, with exactly one BOS each if the tokenizer adds one to plain text.

    A chat template writes its own BOS into the text, which is not doubled here.

    Raises:
        ValueError: a text holds half of a surrogate pair. Bytes of a command line that are not
            UTF-8 are read as such.
    """
    ids = _plain_ids(tokenizer, texts)
    bos = tokenizer.bos_token_id
    if not ids or bos is None:
        return ids
    adds_bos = tokenizer("a")["input_ids"][:1] == [bos]
    return [_with_one_bos(row, bos, adds_bos) for row in ids]


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    continuations: Sequence[str],
    context: int | None,
) -> list[tuple[list[int], list[int]]]:
    """Tokenize prompts as :func:`encode_texts` does, and what follows each without special tokens.

    Args:
        tokenizer: the model's tokenizer.
        prompts: what the model reads first.
        continuations: what follows each prompt.
        context: the model's context in tokens; None = not known.

    Returns:
        Token ids of each prompt and of its continuation.

    Raises:
        ValueError: a prompt or a continuation has no tokens, both have as many as the context or
            more, or as :func:`encode_texts`.

    Examples:
        >>> encode_continuations(tokenizer, ["The capital of France is"], [" Paris"], 8192)
        [([504, 3575, 282, 4649, 314], [7042])]
    """
    heads, tails = encode_texts(tokenizer, prompts), _plain_ids(tokenizer, continuations)
    check_lengths(heads, None, lambda i: f"request {i} prompt")
    check_lengths(tails, None, lambda i: f"request {i} continuation")
    pairs = list(zip(heads, tails, strict=True))
    check_lengths(
        [head + tail for head, tail in pairs],
        context,
        lambda i: f"request {i} prompt and continuation",
    )
    return pairs


def _plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: expected Unicode, got {text[error.start]!r} in {reprlib.repr(text)}"
            ) from None
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def _with_one_bos(ids: list[int], bos: int, adds_bos: bool) -> list[int]:
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    return [bos, *ids[start:]] if start or adds_bos else ids


def chat_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """Render each text as a user's turn, up to where the assistant's reply begins.

    Raises:
        ValueError: the tokenizer has no chat template, or a broken one.
    """
    if tokenizer.chat_template is None:
        raise ValueError("chat: expected a tokenizer with a chat template, got one without")
    from jinja2 import TemplateError  # only templates need it

    turns = [[{"role": "user", "content": text}] for text in texts]
    try:
        rendered: list[str] = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise ValueError(f"chat template: {error}") from error
    return rendered


def check_lengths(
    ids: Sequence[Sequence[int]], context: int | None, name: Callable[[int], str]
) -> None:
    """Check token ids before a model runs: every text has a token, and room for a reply.

    Args:
        ids: token ids of each text.
        context: the model's context in tokens; None = not known.
        name: returns what an error calls the text of an index.

    Raises:
        ValueError: a text has no tokens, or as many as the context or more.
    """
    expected = "1 token or more" if context is None else f"1 to {context - 1} tokens"
    for i, row in enumerate(ids):
        if not row or (context is not None and len(row) >= context):
            raise ValueError(f"{name(i)}: expected {expected}, got {len(row)}")


def left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad token ids on the left: ids [n, longest] int64, and their mask [n, longest] bool."""
    longest = max(len(row) for row in rows)
    # Padding is masked, so any id will do. 0 exists in every vocabulary.
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    real = torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])
    return tokens.to(device), real.to(device)


def positions_of(real: Tensor) -> Tensor:
    """Return each token's position in its own sequence: [n, tokens] int64, 0 on padding."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


def batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> Iterator[list[int]]:
    """Divide texts into batches of similar length, so that little is padded.

    Args:
        lengths: number of tokens of each text.
        max_tokens: tokens per batch, padding included. One text always makes a batch.
        max_rows: texts per batch; None = no limit.

    Yields:
        The indices of a batch's texts.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[i] > max_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def run_decoder(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], layers: Sequence[int], max_tokens: int
) -> Iterator[tuple[list[int], Tensor, Tensor, dict[int, Tensor]]]:
    """Run texts through the decoder, without its head, and keep the residual stream.

    Args:
        model: a decoder-only model.
        ids: token ids of each text.
        layers: the blocks after which the residual stream is kept.
        max_tokens: tokens per forward, padding included.

    Yields:
        Indices of the batch's texts, their token ids and mask (:func:`left_pad`), and by layer the
        residual stream after the block, [batch, tokens, d_model] in the model's dtype.

    Raises:
        ValueError: the model lacks a layer, or as :func:`check_lengths`.

    Examples:
        >>> for batch, _, _, hidden in run_decoder(model, ids, [12], max_tokens=8192):
        ...     last[batch] = hidden[12][:, -1]  # padding is on the left
    """
    hidden: dict[int, Tensor] = {}

    def hook(layer: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            hidden[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    blocks = decoder_layers(model)
    for layer in layers:
        if not 0 <= layer < len(blocks):
            raise ValueError(f"layer: expected 0 to {len(blocks) - 1}, got {layer}")
    # Without this check, a text without tokens would have padding as its last token.
    check_lengths(ids, ModelInfo.from_config(model.config).context, lambda i: f"text {i}")
    for batch in batches([len(row) for row in ids], max_tokens):
        tokens, real = left_pad([ids[i] for i in batch], model.device)
        with ExitStack() as hooks, torch.no_grad():
            for layer in layers:
                hooks.callback(blocks[layer].register_forward_hook(hook(layer)).remove)
            model.get_decoder()(
                input_ids=tokens,
                attention_mask=real.long(),
                position_ids=positions_of(real),
                use_cache=False,
            )
        yield batch, tokens, real, hidden
