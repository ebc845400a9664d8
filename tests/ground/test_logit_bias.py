from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from saif_fast import embedded
from saif_fast.logit_bias import Unembedding, clamped, largest, last_residuals


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(embedded.model_path()).eval()


def test_last_residuals_give_the_models_own_logits(model: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.model_path())
    prompts = ["User: Tell me.", "User: Tell me about my black cat."]
    found = Unembedding(model).logits(last_residuals(model, tokenizer, prompts))
    with torch.inference_mode():
        for row, prompt in zip(found, prompts, strict=True):
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            torch.testing.assert_close(row, model(ids).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_last_residuals_keep_the_order_of_the_prompts(model: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.model_path())
    prompts = ["Tell me about my black cat.", "Tell me.", "Tell me about cats."]
    together = last_residuals(model, tokenizer, prompts)
    alone = torch.cat([last_residuals(model, tokenizer, [prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_shift_is_the_difference_of_logits_with_mean_zero(model: LlamaForCausalLM) -> None:
    generator = torch.Generator().manual_seed(0)
    vector, residual = torch.randn(64, generator=generator), torch.randn(3, 64, generator=generator)
    unembedding = Unembedding(model)
    difference = (unembedding.logits(residual + vector) - unembedding.logits(residual)).mean(0)
    shift = unembedding.shift(vector, residual)
    torch.testing.assert_close(shift, difference - difference.mean(), rtol=1e-4, atol=1e-4)
    assert unembedding.shift(torch.zeros(64), residual).abs().max() < 1e-5


def test_promoted_tokens_are_those_with_the_largest_logits(model: LlamaForCausalLM) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    raised, lowered = Unembedding(model).promoted(vector, 3)
    logits = Unembedding(model).logits(vector[None])[0]
    assert raised == logits.topk(3).indices.tolist()
    assert lowered == (-logits).topk(3).indices.tolist()


def test_a_soft_cap_bounds_the_logits() -> None:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=16,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data.mul_(1e4)
    config.final_logit_softcapping = 30.0
    assert Unembedding(model).logits(torch.ones(1, 8)).abs().max() <= 30.0


def test_largest_takes_both_signs_and_all_where_no_number_is_given() -> None:
    shift = torch.tensor([0.5, -3.0, 2.0, 0.0])
    assert largest(shift, 2) == {1: -3.0, 2: 2.0}
    assert set(largest(shift)) == {0, 1, 2, 3}


def test_largest_of_the_raised_leaves_lowered_tokens_out() -> None:
    assert largest(torch.tensor([0.5, -3.0, 2.0, 0.0]), 2, raised=True) == {2: 2.0, 0: 0.5}


@pytest.mark.parametrize("n", [0, 5])
def test_largest_refuses_more_tokens_than_there_are(n: int) -> None:
    with pytest.raises(ValueError, match="tokens: expected 1 to 4"):
        largest(torch.zeros(4), n)


def test_clamped_values_are_in_the_apis_range() -> None:
    assert clamped({1: 250.0, 2: -101.0, 3: 5.0}) == {1: 100.0, 2: -100.0, 3: 5.0}
