"""Steering and the prefix cache: what may be shared is, what may not is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import embedded_sets
import pytest
from engine_job import Job, run
from hf_reference import Comparison

from saif_fast.embedded import model_path

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


@pytest.fixture(scope="module")
def served(set_dir: Path) -> dict[str, dict[str, Any]]:
    prompt = [token for prompt in embedded_sets.prompts(8) for token in prompt][:140]
    batches = []
    for _, extra_args, salt in STEPS:
        request = {"prompt": prompt, "max_tokens": 8, "extra_args": extra_args}
        batches.append([request if salt is None else {**request, "cache_salt": salt}])
    done = run(Job(model_path(), batches, set_dir=set_dir)).check()
    return {name: batch[0] for (name, *_), batch in zip(STEPS, done.batches, strict=True)}


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
