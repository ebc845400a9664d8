"""Steering together with other features of vLLM, in one batch: LoRA, structured outputs, n > 1,
log-probabilities; and weights that are reloaded under it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import adapter
import embedded_sets
import hf_reference
import pytest
from engine_job import Job, Served, run
from hf_reference import Comparison
from reported import check_reports
from transformers import AutoTokenizer

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

MIDDLE, LAST = {"saif": "clamp_middle"}, {"saif": "add_last"}
ALL, PROMPT = {"saif_scope": "all"}, {"saif_scope": "prompt"}
LORA = {"lora": "adapter"}
# So long that no generation comes to its end: then it allows what its characters spell, no more.
REGEX = {"structured_outputs": {"regex": "[a-z ]{400,500}"}}
# Greedy; vLLM takes no temperature of 0 with n > 1.
THREE = {"n": 3, "temperature": 1.0, "top_k": 1}
SCORED = {"prompt_logprobs": 0}
ASKED: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "plain_lora": (None, LORA),
    "plain_regex": (None, {"params": REGEX}),
    "plain_three": (None, {"params": THREE}),
    "plain_scored": (None, {"params": SCORED}),
    "middle_lora": (MIDDLE, LORA),
    "last_lora": (LAST, LORA),
    "middle_regex": (MIDDLE, {"params": REGEX}),
    "last_regex": (LAST, {"params": REGEX}),
    "middle_three": (MIDDLE, {"params": THREE}),
    "last_three": (LAST, {"params": THREE}),
    "middle_scored": ({"saif": "vector_middle*0.5", **ALL}, {"params": SCORED}),
    "last_scored": ({**LAST, **PROMPT}, {"params": SCORED}),
    "all_at_once": ({**MIDDLE, **ALL}, {**LORA, "params": {**REGEX, **THREE, **SCORED}}),
    "middle": (MIDDLE, {}),
}
Requests = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapter")


@pytest.fixture(scope="module")
def merged(hf_model: Any, adapter_dir: Path) -> Any:
    """The embedded model with the adapter in its weights."""
    return adapter.save(hf_model, adapter_dir)


@pytest.fixture(scope="module")
def asked(merged: Any, adapter_dir: Path) -> Requests:
    """All over one prompt: what differs, differs for what was asked."""
    prompt = embedded_sets.prompts(1)[0]
    asked: Requests = {}
    for name, (extra_args, more) in ASKED.items():
        asked[name] = {"prompt": prompt, "max_tokens": 16, "extra_args": extra_args, **more}
        if "lora" in more:
            asked[name]["lora"] = str(adapter_dir)
    return asked


@pytest.fixture(scope="module")
def expected(
    asked: Requests, hf_model: Any, merged: Any, sets: Mapping[str, LatentSet]
) -> Requests:
    """Of Hugging Face, each alone: the merged model for LoRA, the regex's tokens for its outputs."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    letters = set("abcdefghijklmnopqrstuvwxyz ")
    spelled = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    allowed = [token for token, text in enumerate(spelled) if text and set(text) <= letters]
    expected: Requests = {}
    for name, request in asked.items():
        model = merged if "lora" in request else hf_model
        params = request.get("params", {})
        within = allowed if "structured_outputs" in params else None
        expected[name] = hf_reference.generate(model, sets, request, within)
        if "prompt_logprobs" in params:
            expected[name]["prompt_logprobs"] = hf_reference.prompt_logprobs(model, sets, request)
    return expected


@pytest.fixture(scope="module")
def served(asked: Requests, set_dir: Path) -> Served:
    engine = {"enable_lora": True, "max_lora_rank": adapter.RANK}
    batches = [list(asked.values())]
    return run(Job(model_path(), batches, set_dir=set_dir, engine=engine)).check()


@pytest.fixture(scope="module")
def got(served: Served, asked: Requests) -> Requests:
    return dict(zip(asked, served.batches[0], strict=True))


@pytest.mark.parametrize("feature", ["lora", "regex", "three", "scored", "all_at_once", ""])
def test_feature_equals_the_reference(feature: str, expected: Requests, got: Requests) -> None:
    comparison = Comparison()
    for name in ASKED:
        if name.endswith(feature):
            comparison.add(name, expected[name], got[name])
    comparison.check(most_excused=0)


def test_all_of_n_outputs_are_steered(got: Requests) -> None:
    for name in ("plain_three", "middle_three", "last_three", "all_at_once"):
        assert [other["tokens"] for other in got[name]["others"]] == [got[name]["tokens"]] * 2


@pytest.mark.parametrize("name", ASKED)
def test_logprobs_are_those_of_the_steered_model(
    name: str, expected: Requests, got: Requests
) -> None:
    assert got[name]["logprobs"] == pytest.approx(expected[name]["logprobs"], abs=1e-3)


@pytest.mark.parametrize("name", [name for name in ASKED if "scored" in name or "once" in name])
def test_prompt_logprobs_are_those_of_the_steered_model(
    name: str, expected: Requests, got: Requests
) -> None:
    wanted = expected[name]["prompt_logprobs"]
    assert got[name]["prompt_logprobs"] == pytest.approx(wanted, abs=1e-3)


def test_every_feature_and_every_set_makes_a_difference(expected: Requests) -> None:
    # Else the equalities above would say nothing. The prompt's scores are compared instead of the
    # text, which steering of the prompt need not change.
    texts = {name: tuple(found["tokens"]) for name, found in expected.items()}
    differing = [name for name in texts if "three" not in name and "scored" not in name]
    assert len({texts[name] for name in differing}) == len(differing)
    scores = [tuple(found.get("prompt_logprobs", ())) for found in expected.values()]
    assert len(set(scores)) == 5  # four of them, and none


def test_reports_of_features(served: Served, asked: Requests, got: Requests) -> None:
    check_reports(served, [(asked[name], got[name]) for name in ASKED])


def test_steering_outlives_reloaded_weights_and_sleep(
    merged: Any,
    hf_model: Any,
    sets: Mapping[str, LatentSet],
    set_dir: Path,
    tmp_path: Path,
) -> None:
    other, own_sets = tmp_path / "model", tmp_path / "sets"
    shutil.copytree(model_path(), other)
    merged.save_pretrained(other)
    shutil.copytree(set_dir, own_sets)
    shutil.copy(own_sets / "vector_middle.safetensors", own_sets / "changing.safetensors")
    prompt = embedded_sets.prompts(1)[0]
    asked = [
        {"prompt": prompt, "max_tokens": 16, "extra_args": extra_args}
        for extra_args in (None, MIDDLE, LAST, {"saif": "changing"})
    ]
    job = Job(
        model_path(),
        [
            asked,
            ("reload_weights", {"weights_path": str(other)}),
            asked,
            ("fall_asleep", {}),
            {"changing": "vector_last"},
            asked,  # loads a set in the place of another: that it does so must not be undone
            ("rise", {}),
            asked,
        ],
        set_dir=own_sets,
        engine_args={"worker_extension_cls": "light_sleeper.LightSleeper"},
        engine={"enable_prefix_caching": False},  # KV of the old weights
    )
    served = run(job).check()
    before = {**sets, "changing": sets["vector_middle"]}
    after = {**sets, "changing": sets["vector_last"]}
    stages = ((hf_model, before), (merged, before), (merged, after), (merged, after))
    comparison = Comparison()
    for i, ((model, known), batch) in enumerate(zip(stages, served.batches, strict=True)):
        for j, (request, got) in enumerate(zip(asked, batch, strict=True)):
            expected = hf_reference.generate(model, known, request)
            comparison.add(f"stage {i}, request {j}", expected, got)
    comparison.check(most_excused=0)
    check_reports(served, zip(4 * asked, sum(served.batches, []), strict=True))
