"""Training of the embedded model: one thread, fixed seeds, fp32."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from saif_fast.embedded import MODEL_NAME
from tools.tiny_model.examples import Example, examples
from tools.tiny_model.tokenizer import BOS, EOS, MAX_LENGTH, PAD

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BATCH = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.01
PROMPT_SHARE = 0.15
PROMPT_WEIGHT = 0.1


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Make a Llama of three layers with random weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {
        "bos_token_id": tokenizer.convert_tokens_to_ids(BOS),
        "eos_token_id": tokenizer.convert_tokens_to_ids(EOS),
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            # The name that its SAEs record. A directory's name says nothing.
            model_name=MODEL_NAME,
            **ids,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def chat_prompt(tokenizer: PreTrainedTokenizerFast, user: str) -> str:
    """Render the user's turn in the chat template, up to the assistant's reply."""
    messages = [{"role": "user", "content": user}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    return prompt


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, weights) without end, both [BATCH, length] and right-padded.

    A weight is that of an id as a target: 1 for reply tokens and the end, 0.1 for a random 15 % of
    the prompt's tokens, 0 for the others.
    """
    generator = torch.Generator().manual_seed(seed)
    source = examples(seed)
    pad = tokenizer.convert_tokens_to_ids(PAD)
    while True:
        encoded = [_encode(tokenizer, example) for example in itertools.islice(source, BATCH)]
        length = max(len(prompt) + len(reply) for prompt, reply in encoded)
        ids = torch.full((BATCH, length), pad)
        weights = torch.zeros(BATCH, length)
        for row, (prompt, reply) in enumerate(encoded):
            end = len(prompt) + len(reply)
            ids[row, :end] = torch.tensor(prompt + reply)
            chosen = torch.rand(len(prompt), generator=generator) < PROMPT_SHARE
            weights[row, : len(prompt)] = chosen * PROMPT_WEIGHT
            weights[row, len(prompt) : end] = 1.0
        yield ids, weights


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    learning_rate: float = LEARNING_RATE,
) -> float:
    """Train with AdamW, a short warm-up and linear decay to zero.

    Returns:
        The mean loss of the last 50 steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1 - step / steps)
    )
    losses: list[float] = []
    model.train()
    for ids, weights in itertools.islice(batches(tokenizer, seed), steps):
        logits = model(input_ids=ids[:, :-1]).logits
        per_token = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        weight = weights[:, 1:].flatten()
        loss = (per_token * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    last = losses[-50:]
    return sum(last) / len(last)


def _encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], list[int]]:
    prompt = tokenizer(chat_prompt(tokenizer, example.user))["input_ids"]
    reply = tokenizer(f" {example.reply}{EOS}")["input_ids"]
    return prompt, reply
