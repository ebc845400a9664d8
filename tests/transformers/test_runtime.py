from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest
from saif_transformers import TransformersRuntime, steer

sys.path.insert(0, str(Path(__file__).parent))
from random_model import (
    N_LAYERS,
    Ask,
    dense,
    edited,
    naive_logits,
    tiny_model,
    tiny_tokenizer,
)

PROMPTS = ("w1 w2 w3 w4 w5 w6", "w7", "w8 w9 w10", "w11 w12 w13 w14", "w15 w16")
SETS = {
    "live": edited(["clamp:3", "scale:2"], 0),
    "add": edited(["add:3", "add:2"], N_LAYERS - 1),
    "dense": dense(1),
}
SPECS: tuple[tuple[str | None, dict[str, Any]], ...] = (
    ("live*0.7 + dense", {}),
    (None, {}),
    ("add", {"saif_scope": "all"}),
    ("dense*2", {"saif_start": 1, "saif_stop": 4}),
    ("live", {"saif_decay": "0.5,2"}),
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def runtime(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> TransformersRuntime:
    return TransformersRuntime(model, SETS, tokenizer=tokenizer)


def requests(n: int = 15, max_tokens: int = 7) -> list[GenerationRequest]:
    """Every prompt with every kind of request, in an order that mixes lengths."""
    return [
        GenerationRequest(
            prompt=PROMPTS[i % len(PROMPTS)],
            saif=SPECS[(i // 3) % len(SPECS)][0],
            options=SPECS[(i // 3) % len(SPECS)][1],
            max_tokens=max_tokens,
        )
        for i in range(n)
    ]


def by_generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, request: GenerationRequest
) -> list[int]:
    inputs = tokenizer(request.prompt, return_tensors="pt", return_token_type_ids=False)
    with steer(model, SETS, request.saif, **request.options if request.saif else {}):
        output = model.generate(**inputs, max_new_tokens=request.max_tokens, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def test_equals_generate_under_steer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, runtime: TransformersRuntime
) -> None:
    got = runtime.generate(requests())
    expected = [by_generate(model, tokenizer, request) for request in requests()]
    assert [generation.token_ids for generation in got] == expected
    assert len({tuple(tokens) for tokens in expected}) > len(PROMPTS), "nothing was steered"


@pytest.mark.parametrize("options", [{"max_rows": 1}, {"max_rows": 4}, {"max_batch_tokens": 30}])
def test_batches_change_nothing(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    runtime: TransformersRuntime,
    options: dict[str, int],
) -> None:
    small = TransformersRuntime(model, SETS, tokenizer=tokenizer, **options)
    assert small.generate(requests()) == runtime.generate(requests())


def test_rows_stop_at_eos_and_at_their_own_budget(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, runtime: TransformersRuntime
) -> None:
    full = [generation.token_ids for generation in runtime.generate(requests(5, 12))]
    eos = full[0][3]
    assert eos != tokenizer.eos_token_id
    model.generation_config.eos_token_id = [eos]
    try:
        stopping = TransformersRuntime(model, SETS, tokenizer=tokenizer)
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    asked = [
        GenerationRequest(prompt=r.prompt, saif=r.saif, options=r.options, max_tokens=12 - i)
        for i, r in enumerate(requests(5))
    ]
    for i, generation in enumerate(stopping.generate(asked)):
        budget = full[i][: 12 - i]
        expected = budget[: budget.index(eos) + 1] if eos in budget else budget
        assert generation.token_ids == expected, f"row {i}"


def test_logit_bias_is_added_to_the_raw_logits(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, runtime: TransformersRuntime
) -> None:
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    best, second = logits.topk(2).indices.tolist()
    gap = (logits[best] - logits[second]).item()
    first = [
        generation.token_ids[0]
        for generation in runtime.generate(
            [
                GenerationRequest(prompt=PROMPTS[0], logit_bias=bias, max_tokens=1)
                for bias in (None, {second: gap * 0.99}, {second: gap * 1.01}, {best: -gap * 1.01})
            ]
        )
    ]
    assert first == [best, best, second, second]


def test_text_and_order(runtime: TransformersRuntime, tokenizer: PreTrainedTokenizerFast) -> None:
    got = runtime.generate(requests())
    assert got == list(reversed(runtime.generate(list(reversed(requests())))))
    for generation in got:
        assert generation.text == tokenizer.decode(generation.token_ids, skip_special_tokens=True)
    assert runtime.generate([]) == []


def test_a_generation_ends_with_the_context(runtime: TransformersRuntime) -> None:
    never_eos = {2: -1e6}
    asked = [
        GenerationRequest(prompt="w1 " * n, max_tokens=9, logit_bias=never_eos)
        for n in (62, 60, 50)
    ]
    assert [len(generation.token_ids) for generation in runtime.generate(asked)] == [1, 3, 9]


def test_sets_are_looked_up_at_every_call(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    sets: dict[str, LatentSet] = {}
    runtime = TransformersRuntime(model, sets, tokenizer=tokenizer)
    asked = [GenerationRequest(prompt=PROMPTS[0], saif="late", max_tokens=4)]
    with pytest.raises(ValueError, match="late"):
        runtime.generate(asked)
    sets["late"] = SETS["add"]
    late: list[Generation] = runtime.generate(asked)
    sets["late"] = SETS["dense"]
    assert runtime.generate(asked) != late


def test_a_bos_in_the_prompt_is_not_doubled(runtime: TransformersRuntime) -> None:
    once, twice = (GenerationRequest(prompt=text + PROMPTS[0]) for text in ("", "<bos> "))
    assert runtime.generate([once]) == runtime.generate([twice])


BAD = {
    "too long": (GenerationRequest(prompt="w1 " * 63), "1 to 63 tokens"),
    "no tokens": (GenerationRequest(prompt=PROMPTS[0], max_tokens=0), "max_tokens"),
    "token": (GenerationRequest(prompt=PROMPTS[0], logit_bias={99: 1.0}), "tokens 0 to 45"),
    "nan": (GenerationRequest(prompt=PROMPTS[0], logit_bias={1: float("nan")}), "finite"),
    "set": (GenerationRequest(prompt=PROMPTS[0], saif="none"), "available"),
    "option": (
        GenerationRequest(prompt=PROMPTS[0], saif="add", options={"saif_stop": 0}),
        "saif_stop",
    ),
}


@pytest.mark.parametrize("request_, message", BAD.values(), ids=BAD)
def test_bad_requests_are_refused(
    runtime: TransformersRuntime, request_: GenerationRequest, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runtime.generate([request_])


TEXTS = ("w5 w6 w7 w8 w9", "w11", "w12 w13 w3", "<eos> w1")
STEERED: tuple[tuple[str | None, dict[str, float]], ...] = (
    (None, {}),
    ("live*0.7 + dense", {"live": 0.7, "dense": 1.0}),
    ("add", {"add": 1.0}),
)


def scored() -> list[LogProbRequest]:
    """Every prompt before every text, unsteered and steered, in an order that mixes lengths."""
    return [
        LogProbRequest(prompt=prompt, continuation=text, saif=saif)
        for prompt in PROMPTS
        for text in TEXTS
        for saif, _ in STEERED
    ]


def test_scores_are_the_log_probabilities_of_single_forwards(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, runtime: TransformersRuntime
) -> None:
    asks = dict(STEERED)
    for request, got in zip(scored(), runtime.log_probs(scored()), strict=True):
        prompt = tokenizer(request.prompt)["input_ids"]
        text = tokenizer(request.continuation, add_special_tokens=False)["input_ids"]
        ask = Ask(asks[request.saif], prompt=True)
        logits = naive_logits(model, prompt + text, len(prompt + text), ask, SETS)
        before = logits[len(prompt) - 1 : -1].log_softmax(-1)
        expected = before[range(len(text)), text]
        torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"max_rows": 1}, {"max_rows": 7}, {"max_batch_tokens": 30}])
def test_batches_change_no_score(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    runtime: TransformersRuntime,
    options: dict[str, int],
) -> None:
    small = TransformersRuntime(model, SETS, tokenizer=tokenizer, **options)
    for got, expected in zip(small.log_probs(scored()), runtime.log_probs(scored()), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)
    assert runtime.log_probs([]) == []


def test_tokens_that_are_generated_greedily_have_the_scores_of_their_steps(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, runtime: TransformersRuntime
) -> None:
    generation = runtime.generate([GenerationRequest(prompt=PROMPTS[0], max_tokens=5)])[0]
    (got,) = runtime.log_probs([LogProbRequest(prompt=PROMPTS[0], continuation=generation.text)])
    inputs = tokenizer(PROMPTS[0], return_tensors="pt", return_token_type_ids=False)
    output = model.generate(
        **inputs,
        max_new_tokens=5,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = [logits[0].log_softmax(-1).max().item() for logits in output.logits]
    assert got == pytest.approx(expected[: len(got)], abs=1e-4)
    assert len(got) == len(tokenizer(generation.text, add_special_tokens=False)["input_ids"])


BAD_TEXTS = {
    "empty text": (
        LogProbRequest(prompt="w1", continuation=""),
        "request 1 continuation: expected 1 token or more, got 0",
    ),
    "too long": (
        LogProbRequest(prompt="w1 " * 30, continuation="w2 " * 33),
        "request 1 prompt and continuation: expected 1 to 63 tokens, got 64",
    ),
    "set": (LogProbRequest(prompt="w1", continuation="w2", saif="none"), "available"),
    "surrogate": (LogProbRequest(prompt="w1", continuation="\ud800"), "text: expected Unicode"),
}


@pytest.mark.parametrize("request_, message", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_texts_are_refused_before_any_is_scored(
    runtime: TransformersRuntime, request_: LogProbRequest, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runtime.log_probs([scored()[0], request_])


def test_an_empty_prompt_is_refused(model: LlamaForCausalLM) -> None:
    without_bos = TransformersRuntime(model, SETS, tokenizer=tiny_tokenizer(adds_bos=False))
    with pytest.raises(ValueError, match="request 0 prompt: expected 1 token or more, got 0"):
        without_bos.log_probs([LogProbRequest(prompt="", continuation="w1")])


def test_the_capability_cost_is_that_of_single_forwards(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    small = TransformersRuntime(model, SETS, tokenizer=tokenizer, max_batch_tokens=12)
    got = small.capability_cost("live*0.7 + dense", PROMPTS)
    rows, ask = [], Ask({"live": 0.7, "dense": 1.0}, prompt=True)
    for text in PROMPTS:
        ids = tokenizer(text)["input_ids"]
        plain, steered = (
            naive_logits(model, ids, len(ids), asked, SETS)[:-1].double().log_softmax(-1)
            for asked in (Ask(), ask)
        )
        for i, token in enumerate(ids[1:]):
            kl = (plain[i].exp() * (plain[i] - steered[i])).sum()
            rows.append([-plain[i, token], -steered[i, token], kl])
    mean = torch.tensor(rows, dtype=torch.float64).mean(0)
    assert got.n_tokens == len(rows)
    assert got.perplexity == pytest.approx(mean[0].exp().item(), rel=1e-4)
    assert got.steered_perplexity == pytest.approx(mean[1].exp().item(), rel=1e-4)
    assert got.kl == pytest.approx(mean[2].item(), rel=1e-3)
    assert got.kl > 0.1


def test_a_set_of_next_to_no_strength_costs_nothing(runtime: TransformersRuntime) -> None:
    cost = runtime.capability_cost("dense*1e-7", PROMPTS)
    assert cost.kl == pytest.approx(0.0, abs=1e-6)
    assert cost.steered_perplexity == pytest.approx(cost.perplexity)


def test_a_text_of_one_token_has_no_perplexity(model: LlamaForCausalLM) -> None:
    without_bos = TransformersRuntime(model, SETS, tokenizer=tiny_tokenizer(adds_bos=False))
    with pytest.raises(ValueError, match="text 1: expected 2 tokens or more, got 1"):
        without_bos.capability_cost("dense", ["w1 w2", "w3"])


def test_a_model_directory(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    runtime: TransformersRuntime,
    tmp_path: Path,
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = TransformersRuntime(tmp_path, SETS, device="cpu")
    assert loaded.generate(requests()) == runtime.generate(requests())
    loaded.close()
