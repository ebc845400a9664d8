from __future__ import annotations

import pytest
import torch
from random_model import N_LAYERS, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from saif_fast import hf

BOS = 1


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_template_that_writes_bos_gives_one(adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    rows = hf.encode_texts(tokenizer, hf.chat_texts(tokenizer, ["w1 w2", "w3"]))
    assert [row[0] for row in rows] == [BOS, BOS]
    assert [row.count(BOS) for row in rows] == [1, 1]


@pytest.mark.parametrize("adds_bos, count", [(True, 1), (False, 0)])
def test_plain_text_gets_the_tokenizers_bos(adds_bos: bool, count: int) -> None:
    (row,) = hf.encode_texts(tiny_tokenizer(adds_bos=adds_bos), ["w1 w2"])
    assert row.count(BOS) == count and len(row) == 2 + count


def test_half_a_character_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"text: expected Unicode, got '\\udcff' in 'w1 \\udcff'"):
        hf.encode_texts(tiny_tokenizer(), ["w1", "w1 \udcff"])


def test_no_template_is_an_error() -> None:
    with pytest.raises(ValueError, match="chat template"):
        hf.chat_texts(tiny_tokenizer(chat=False), ["w1"])


def test_padding_and_positions() -> None:
    tokens, real = hf.left_pad([[5, 6, 7], [8]], torch.device("cpu"))
    assert tokens[real].tolist() == [5, 6, 7, 8] and tokens[1, -1] == 8
    assert hf.positions_of(real).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = [7, 3, 9, 3, 30, 1, 8, 8]
    found = list(hf.batches(lengths, max_tokens=18, max_rows=3))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 18


def test_decoder_layers() -> None:
    model = tiny_model()
    assert hf.decoder_layers(model) is model.model.layers and len(model.model.layers) == N_LAYERS
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match="decoder-only"):
        hf.decoder_layers(t5)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gpt2", "transformer.h"),
        ("gpt_neox", "gpt_neox.layers"),
        ("phi", "model.layers"),
        ("cohere", "model.layers"),
        ("gemma3_text", "model.layers"),
        ("qwen3_moe", "model.layers"),
    ],
)
def test_decoder_layers_whatever_they_are_called(model_type: str, name: str) -> None:
    # As many experts as layers, and no memory.
    config = AutoConfig.for_model(
        model_type, num_hidden_layers=4, num_experts=4, hidden_size=64, num_attention_heads=2
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert hf.decoder_layers(model) is model.get_submodule(name)
