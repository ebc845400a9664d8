"""Steering and the prefix cache: what may be shared is, what may not is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import embedded_sets
import hf_reference
import pytest
from engine_job import Job, run
from hf_reference import Comparison

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

# A prompt of some blocks of 32 tokens.
STEPS: tuple[tuple[str, dict[str, Any] | None, str | None], ...] = (
    ("cold", None, None),
    ("middle", {"saif": "vector_middle"}, None),
    ("plain_after_middle", None, None),
    ("middle_again", {"saif": "vector_middle"}, None),
    ("other_strength", {"saif": "vector_middle*0.5"}, None),
    ("other_window", {"saif": "vector_middle", "saif_scope": "all"}, None),
    ("last", {"saif": "add_last"}, None),
    ("with_user_salt", {"saif": "vector_middle"}, "mine"),
    ("with_user_salt_again", {"saif": "vector_middle"}, "mine"),
    ("user_salt_last", {"saif": "add_last"}, "mine"),
)
# Two turns of a chat, each steered in this way, and how much of the first the second may reuse. Its
# reply was steered when it was generated and is not as a part of the prompt.
CHATS: dict[str, tuple[dict[str, Any], int]] = {
    "steers_below_the_last_layer": ({"saif": "vector_middle"}, 0),
    "steers_the_last_layer": ({"saif": "add_last"}, 192),
    "steers_prompt_and_reply": ({"saif": "vector_middle*0.5", "saif_scope": "all"}, 192),
}
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
def served(set_dir: Path, chats: Chats) -> dict[str, dict[str, Any]]:
    prompt = [token for prompt in embedded_sets.prompts(8) for token in prompt][:140]
    batches = []
    for _, extra_args, salt in STEPS:
        request = {"prompt": prompt, "max_tokens": 8, "extra_args": extra_args}
        batches.append([request if salt is None else {**request, "cache_salt": salt}])
    batches += [[turn] for turns in chats.values() for turn in turns]
    names = [name for name, *_ in STEPS]
    names += [f"{name}_{turn}" for name in chats for turn in (1, 2)]
    done = run(Job(model_path(), batches, set_dir=set_dir)).check()
    return {name: batch[0] for name, batch in zip(names, done.batches, strict=True)}


def test_a_set_below_the_last_layer_leaves_the_cache_of_others_clean(served: Any) -> None:
    comparison = Comparison()
    comparison.add("plain_after_middle", served["cold"], served["plain_after_middle"])
    comparison.check(most_excused=0)
    assert served["plain_after_middle"]["cached"] == 128  # its own blocks


@pytest.mark.parametrize("name", ["middle", "other_strength", "other_window", "with_user_salt"])
def test_it_shares_with_nothing_else(name: str, served: Any) -> None:
    assert served[name]["cached"] == 0


def test_it_shares_with_itself(served: Any) -> None:
    assert served["middle_again"]["cached"] == 128
    assert served["middle_again"]["tokens"] == served["middle"]["tokens"]
    assert served["with_user_salt_again"]["cached"] == 128
    assert served["with_user_salt"]["tokens"] == served["middle"]["tokens"]


def test_a_set_at_the_last_layer_shares_with_everyone(served: Any) -> None:
    assert served["last"]["cached"] == 128
    assert served["last"]["tokens"] != served["cold"]["tokens"]


def test_the_users_own_salt_still_separates(served: Any) -> None:
    assert served["user_salt_last"]["cached"] == 0
    assert served["user_salt_last"]["tokens"] == served["last"]["tokens"]


@pytest.mark.parametrize("name", CHATS)
def test_a_chats_second_turn(name: str, served: Any, chats: Chats) -> None:
    comparison = Comparison()
    for turn in (1, 2):
        comparison.add(f"turn {turn}", chats[name][turn - 1], served[f"{name}_{turn}"])
    comparison.check(most_excused=0)
    assert served[f"{name}_2"]["cached"] == CHATS[name][1]
