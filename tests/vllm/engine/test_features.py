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

MIDDLE, LAST = {"saif": "vector_middle*0.4"}, {"saif": "add_last*0.5"}
BOTH = {"saif": "clamp_middle*0.2 + vector_last*0.2", "saif_scope": "all"}
LORA = {"lora": "adapter"}
# So long that no generation comes to its end: then it allows what its characters spell, no more.
REGEX = {"structured_outputs": {"regex": "[a-z ]{400,500}"}}
# Greedy: vLLM takes no temperature of 0 with n > 1.
THREE = {"n": 3, "temperature": 1.0, "min_p": 1.0}
ASKED: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "plain_lora": (None, LORA),
    "plain_regex": (None, {"params": REGEX}),
    "plain_three": (None, {"params": THREE}),
    "middle": (MIDDLE, {}),
    "middle_lora": (MIDDLE, LORA),
    "middle_regex": (MIDDLE, {"params": REGEX}),
    "middle_three": (MIDDLE, {"params": THREE}),
    "last_lora": (LAST, LORA),
    "last_regex": (LAST, {"params": REGEX}),
    "last_three": (LAST, {"params": THREE}),
    "all_at_once": (BOTH, {**LORA, "params": {**REGEX, **THREE}}),
}
# vLLM gives no prompt_logprobs with LoRA on a CPU: its kernel fails, steered or not.
SCORED: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "middle_all": {**MIDDLE, "saif_scope": "all"},
    "middle_prompt": {**MIDDLE, "saif_scope": "prompt"},
    "last_prompt": {**LAST, "saif_scope": "prompt"},
    "both_all": BOTH,
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
    """Make requests over one prompt, so that outputs differ only for what was asked."""
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
    """Generate by Hugging Face, each alone: merged weights for LoRA, a regex's tokens alone."""
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
    return expected


@pytest.fixture(
    scope="module", params=["v1-eager", pytest.param("v2-eager", marks=pytest.mark.slow)]
)
def served(request: pytest.FixtureRequest, asked: Requests, set_dir: Path) -> Served:
    # On a CPU vLLM gives requests without an adapter, beside others with one, that of the last
    # place: one more, so that it is empty.
    engine = {"enable_lora": True, "max_lora_rank": adapter.RANK, "max_loras": 2}
    batches = [list(asked.values())]
    return run(Job(model_path(), batches, request.param, set_dir, engine=engine)).check()


@pytest.fixture(scope="module")
def got(served: Served, asked: Requests) -> Requests:
    return dict(zip(asked, served.batches[0], strict=True))


@pytest.mark.parametrize("feature", ["lora", "regex", "three", "all_at_once", ""])
def test_feature_equals_the_reference(feature: str, expected: Requests, got: Requests) -> None:
    comparison = Comparison()
    for name in ASKED:
        if name.endswith(feature):
            comparison.add(name, expected[name], got[name])
    comparison.check(most_excused=0)


def test_all_of_n_outputs_are_steered(got: Requests) -> None:
    for name in ("plain_three", "middle_three", "last_three", "all_at_once"):
        assert [other["tokens"] for other in got[name]["others"]] == [got[name]["tokens"]] * 2


def test_logprobs_are_those_of_the_steered_model(expected: Requests, got: Requests) -> None:
    for name, one in got.items():
        assert one["logprobs"] == pytest.approx(expected[name]["logprobs"], abs=1e-3), name


def test_every_feature_and_every_set_makes_a_difference(expected: Requests) -> None:
    # Else the equalities above would say nothing.
    differing = [found for name, found in expected.items() if not name.endswith("three")]
    found = {(*one["tokens"], *(round(x, 2) for x in one["logprobs"])) for one in differing}
    assert len(found) == len(differing)


def test_reports_of_features(served: Served, asked: Requests, got: Requests) -> None:
    check_reports(served, [(asked[name], got[name]) for name in ASKED])


@pytest.fixture(scope="module")
def unlike(hf_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Make a model of other weights; return its directory too."""
    folder = tmp_path_factory.mktemp("unlike")
    shutil.copytree(model_path(), folder, dirs_exist_ok=True)
    model = adapter.save(hf_model, tmp_path_factory.mktemp("unused"))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def scored() -> list[dict[str, Any]]:
    prompt, params = embedded_sets.prompts(1)[0], {"prompt_logprobs": 0}
    return [
        {"prompt": prompt, "max_tokens": 16, "extra_args": extra_args, "params": params}
        for extra_args in SCORED.values()
    ]


@pytest.fixture(scope="module")
def changing() -> dict[str, Any]:
    prompt = embedded_sets.prompts(1)[0]
    return {"prompt": prompt, "max_tokens": 16, "extra_args": {"saif": "changing"}}


@pytest.fixture(scope="module")
def served_in_stages(
    scored: list[dict[str, Any]],
    changing: dict[str, Any],
    unlike: tuple[Any, Path],
    set_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    own_sets = tmp_path_factory.mktemp("own_sets")
    for name in ("add_last", "add_middle", "clamp_middle", "vector_last", "vector_middle"):
        shutil.copy(set_dir / f"{name}.safetensors", own_sets)
    shutil.copy(set_dir / "clamp_middle.safetensors", own_sets / "changing.safetensors")
    job = Job(
        model_path(),
        [
            [*scored, changing],
            ("reload_weights", {"weights_path": str(unlike[1])}),
            [*scored, changing],
            ("fall_asleep", {}),
            {"changing": "add_middle"},  # takes the place of a set that is loaded
            [changing],
            ("rise", {}),
            [changing],
        ],
        set_dir=own_sets,
        engine_args={"worker_extension_cls": "light_sleeper.LightSleeper", "max_sets": 3},
        engine={"enable_prefix_caching": False},  # KV of the old weights
    )
    return run(job).check()


def test_steering_outlives_reloaded_weights_and_sleep(
    served_in_stages: Served,
    scored: list[dict[str, Any]],
    changing: dict[str, Any],
    unlike: tuple[Any, Path],
    hf_model: Any,
    sets: Mapping[str, LatentSet],
) -> None:
    first = {**sets, "changing": sets["clamp_middle"]}
    second = {**sets, "changing": sets["add_middle"]}
    stages = (
        ("first", hf_model, first, [*scored, changing]),
        ("reloaded", unlike[0], first, [*scored, changing]),
        ("asleep", unlike[0], second, [changing]),
        ("awake", unlike[0], second, [changing]),
    )
    comparison, all_of_them = Comparison(), []
    for (stage, model, known, asked), batch in zip(stages, served_in_stages.batches, strict=True):
        for request, got in zip(asked, batch, strict=True):
            expected = hf_reference.generate(model, known, request)
            comparison.add(f"{stage}: {request['extra_args']}", expected, got)
            # Sets that end a text at once all give one text.
            if got["tokens"] == expected["tokens"]:
                assert got["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-3), stage
            all_of_them.append((request, got))
    comparison.check()
    check_reports(served_in_stages, all_of_them)


def test_prompt_logprobs_are_those_of_the_steered_model(
    served_in_stages: Served,
    scored: list[dict[str, Any]],
    unlike: tuple[Any, Path],
    hf_model: Any,
    sets: Mapping[str, LatentSet],
) -> None:
    for model, batch in zip((hf_model, unlike[0]), served_in_stages.batches, strict=False):
        all_scores = []
        for name, request, got in zip(SCORED, scored, batch, strict=False):
            scores = hf_reference.prompt_logprobs(model, sets, request)
            assert got["prompt_logprobs"] == pytest.approx(scores, abs=1e-3), name
            all_scores.append(tuple(round(score, 2) for score in scores))
        # "all" and "prompt" steer a prompt alike.
        assert len(set(all_scores)) == len(SCORED) - 1
