"""Steering and the prefix cache: what may be shared is, what may not is not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import embedded_sets
import hf_reference
import pytest
import torch
from engine_job import Job, run
from hf_reference import Comparison

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

# A prompt of some blocks of 32 tokens: what is asked, with which salt, how many tokens of its KV
# there are already. A dictionary changes the set directory.
Step = tuple[str, dict[str, Any] | None, str | None, int]
STEPS: tuple[Step | dict[str, str | None], ...] = (
    ("cold", None, None, 0),
    # Below the last layer: the prompt is everyone's, and steering begins behind its blocks.
    ("middle", {"saif": "vector_middle"}, None, 128),
    ("plain_after_middle", None, None, 128),
    ("other_strength", {"saif": "vector_middle*0.5"}, None, 128),
    # Where the prompt is steered, nothing is shared but with the like.
    ("everywhere", {"saif": "vector_middle", "saif_scope": "all"}, None, 0),
    ("plain_after_everywhere", None, None, 128),
    ("everywhere_again", {"saif": "vector_middle", "saif_scope": "all"}, None, 128),
    ("prompt_only", {"saif": "vector_middle", "saif_scope": "prompt"}, None, 128),
    ("everywhere_weaker", {"saif": "vector_middle*0.5", "saif_scope": "all"}, None, 0),
    ("last", {"saif": "add_last", "saif_scope": "all"}, None, 128),
    # A user's own salt.
    ("salted", {"saif": "vector_middle"}, "mine", 0),
    ("salted_plain", None, "mine", 128),
    ("salted_last", {"saif": "add_last"}, "mine", 128),
    ("salted_everywhere", {"saif": "vector_middle", "saif_scope": "all"}, "mine", 0),
    # The same name with other content, and back.
    ("renamed", {"saif": "changing", "saif_scope": "all"}, None, 128),
    {"changing": "add_middle"},
    ("reloaded", {"saif": "changing", "saif_scope": "all"}, None, 0),
    {"changing": "vector_middle"},
    ("reloaded_again", {"saif": "changing", "saif_scope": "all"}, None, 128),
)
ASKED = {step[0]: step for step in STEPS if isinstance(step, tuple)}
# What must be the same text, whatever the cache held.
SAME = (
    ("cold", "plain_after_middle", "plain_after_everywhere", "salted_plain"),
    ("middle", "salted"),
    ("everywhere", "everywhere_again", "salted_everywhere", "renamed", "reloaded_again"),
)
# Another prompt, first steered, then plain: the other order. And a longer one that begins alike.
OTHER = (
    ("first_everywhere", {"saif": "vector_middle", "saif_scope": "all"}, 100, 0),
    ("first_middle", {"saif": "vector_middle"}, 100, 0),
    ("then_plain", None, 100, 96),
    ("longer_everywhere", {"saif": "vector_middle", "saif_scope": "all"}, 140, 96),
    ("longer_plain", None, 140, 96),
)
# Two turns of a chat, each steered in this way, and how much of the first the second may reuse. Its
# reply was steered when it was generated and is not as a part of the prompt.
CHATS: dict[str, tuple[dict[str, Any], int]] = {
    "steers_below_the_last_layer": ({"saif": "vector_middle"}, 128),
    "steers_the_last_layer": ({"saif": "add_last"}, 192),
    "steers_prompt_and_reply": ({"saif": "vector_middle*0.5", "saif_scope": "all"}, 192),
}
# Of a model in which only some layers look further back than their window.
WINDOWED = (
    ("everywhere", {"saif": "clamp_middle", "saif_scope": "all"}, 0),
    ("then_plain", None, 0),
    ("everywhere_again", {"saif": "clamp_middle", "saif_scope": "all"}, 96),
    ("plain_again", None, 96),
    ("generated", {"saif": "clamp_middle"}, 96),
)
Chats = dict[str, tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def chats(hf_model: Any, sets: Mapping[str, LatentSet]) -> Chats:
    """Both turns' requests, with what Hugging Face replies."""
    text = [token for prompt in embedded_sets.prompts(16) for token in prompt]
    turns = {}
    for name, (extra_args, _) in CHATS.items():
        prompt = text[40:180]
        # The block of tokens 160 to 192 is all generated.
        first = {"prompt": prompt, "max_tokens": 60, "extra_args": extra_args}
        first |= hf_reference.generate(hf_model, sets, first)
        prompt = [*prompt, *first["tokens"], *text[180:200]]
        second = {"prompt": prompt, "max_tokens": 24, "extra_args": extra_args}
        turns[name] = first, second | hf_reference.generate(hf_model, sets, second)
    return turns


@pytest.fixture(scope="module")
def own_sets(set_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set directory that may be changed."""
    folder = tmp_path_factory.mktemp("changing")
    shutil.copytree(set_dir, folder, dirs_exist_ok=True)
    shutil.copy(folder / "vector_middle.safetensors", folder / "changing.safetensors")
    return folder


@pytest.fixture(scope="module")
def asked(chats: Chats) -> dict[str, dict[str, Any]]:
    text = [token for prompt in embedded_sets.prompts(16) for token in prompt]
    asked = {}
    for name, extra_args, salt, _ in ASKED.values():
        asked[name] = {"prompt": text[:140], "max_tokens": 8, "extra_args": extra_args}
        asked[name] |= {} if salt is None else {"cache_salt": salt}
    for name, extra_args, length, _ in OTHER:
        asked[name] = {"prompt": text[7 : 7 + length], "max_tokens": 8, "extra_args": extra_args}
    for name, turns in chats.items():
        asked |= {f"{name}_{i}": turn for i, turn in enumerate(turns, start=1)}
    return asked


@pytest.fixture(scope="module")
def served(own_sets: Path, asked: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    steps = [step if isinstance(step, dict) else [asked[step[0]]] for step in STEPS]
    batches = [*steps, *([asked[name]] for name in asked if name not in ASKED)]
    done = run(Job(model_path(), batches, set_dir=own_sets)).check()
    return {name: batch[0] for name, batch in zip(asked, done.batches, strict=True)}


@pytest.mark.parametrize("name", [*ASKED, *(name for name, *_ in OTHER)])
def test_what_is_reused(name: str, served: Any) -> None:
    expected = {step[0]: step[-1] for step in (*ASKED.values(), *OTHER)}
    assert served[name]["cached"] == expected[name]


def test_what_is_reused_changes_no_text(
    served: Any, asked: Any, hf_model: Any, sets: Mapping[str, LatentSet]
) -> None:
    content = {**sets, "changing": sets["vector_middle"]}
    comparison = Comparison()
    for name, got in served.items():
        known = {**content, "changing": sets["add_middle"]} if name == "reloaded" else content
        comparison.add(name, hf_reference.generate(hf_model, known, asked[name]), got)
    comparison.check(most_excused=0)


@pytest.mark.parametrize("names", SAME, ids=lambda names: names[0])
def test_the_same_request_gets_the_same_text(names: tuple[str, ...], served: Any) -> None:
    assert len({tuple(served[name]["tokens"]) for name in names}) == 1


@pytest.mark.parametrize("name", CHATS)
def test_a_chats_second_turn(name: str, served: Any) -> None:
    assert served[f"{name}_2"]["cached"] == CHATS[name][1]


@pytest.mark.slow
def test_what_is_reused_where_windows_slide(tmp_path: Path) -> None:
    model, sets, job = architectures.save("gemma3_text", tmp_path)
    prompt = (7 * torch.arange(100) % architectures.VOCABULARY).tolist()
    asked = [
        {"prompt": prompt, "max_tokens": 12, "extra_args": extra_args}
        for _, extra_args, _ in WINDOWED
    ]
    served = run(replace(job, batches=[[request] for request in asked])).check()
    comparison = Comparison()
    for (name, _, cached), request, [got] in zip(WINDOWED, asked, served.batches, strict=True):
        assert got["cached"] == cached, name
        comparison.add(name, hf_reference.generate(model, sets, request), got)
    comparison.check(most_excused=0)
