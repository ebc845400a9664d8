"""SAIF on the embedded model: what is identified steers."""

from __future__ import annotations

import time
from functools import cache

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from saif_fast import hf
from saif_fast.embedded import model_path, sae_path
from saif_fast.identify import LatentStatistics, build_pairs, collect, diff_in_means, find_latents
from saif_fast.model_info import model_name
from saif_fast.runtime import GenerationRequest
from saif_fast.sae import SparseAutoencoder, load_sae
from saif_fast.tasks.embedded import embedded_task
from saif_transformers import TransformersRuntime, steer

TASK = embedded_task("french")
CONTENTS = TASK.contents("select")[:40]


@cache
def embedded() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, SparseAutoencoder]:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    return model, tokenizer, load_sae(sae_path("last"))


@cache
def french() -> LatentStatistics:
    model, tokenizer, sae = embedded()
    return LatentStatistics.compute(sae, collect(model, tokenizer, pairs(), [sae.layer]))


@cache
def pairs():  # type: ignore[no-untyped-def]
    return build_pairs(
        TASK.contents("identify"),
        [wording.text for wording in TASK.wordings],
        neutral=TASK.neutral,
        others=TASK.others,
    )


def loose(replies: list[str]) -> float:
    scores = [TASK.scorer(c, r.strip()) for c, r in zip(CONTENTS, replies, strict=True)]
    return sum(score.loose for score in scores) / len(scores)


def by_generate(request: str | None) -> list[str]:
    model, tokenizer, _ = embedded()
    prompts = hf.chat_texts(tokenizer, CONTENTS)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with steer(model, {"french": french().latent_set()}, request):
        output = model.generate(**inputs, max_new_tokens=TASK.max_tokens, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


def test_an_instruction_is_identified_within_ten_seconds() -> None:
    model, tokenizer, sae = embedded()
    start = time.perf_counter()
    latent_set = find_latents(model, tokenizer, sae, pairs(), k=15)
    assert time.perf_counter() - start < 10
    best = latent_set.sites[0].site.latents[0]
    assert best.consistency is not None and best.consistency > 0.95
    assert latent_set.layers == (sae.layer,)


def test_what_is_identified_produces_french() -> None:
    assert loose(by_generate(None)) <= 0.1
    assert loose(by_generate("french")) >= 0.7


@pytest.mark.parametrize("spec", ["french", "french*0.6", None])
def test_the_runtime_says_what_generate_says(spec: str | None) -> None:
    model, tokenizer, _ = embedded()
    runtime = TransformersRuntime(model, {"french": french().latent_set()}, tokenizer=tokenizer)
    requests = [
        GenerationRequest(prompt=prompt, saif=spec, max_tokens=TASK.max_tokens)
        for prompt in hf.chat_texts(tokenizer, CONTENTS)
    ]
    assert [generation.text for generation in runtime.generate(requests)] == by_generate(spec)


def test_the_sae_explains_the_models_activations() -> None:
    model, tokenizer, sae = embedded()
    assert sae.model_name == model_name(model.config)
    data = collect(model, tokenizer, pairs(), [sae.layer])
    assert sae.explained_variance(data.positive[sae.layer]) > 0.6


def test_difference_in_means_is_along_what_is_identified() -> None:
    model, tokenizer, sae = embedded()
    data = collect(model, tokenizer, pairs(), [sae.layer])
    vector = diff_in_means(data, sae.layer).edits_at(sae.layer).vector
    found = french().latent_set().edits_at(sae.layer).vector
    assert vector @ found > 0.5 * vector.norm() * found.norm()
