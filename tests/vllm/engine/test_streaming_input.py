"""Prompts that come in pieces: steered alike throughout, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import embedded_sets
import hf_reference
import pytest
from engine_job import Job, Served, run

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

LAST, OTHER = {"saif": "add_last"}, {"saif": "add_last*0.5"}
N_TOKENS = 8  # a piece
# What each piece asks for.
SESSIONS: dict[str, tuple[dict[str, Any] | None, ...]] = {
    "unsteered": (None, None, None),
    "steered": (LAST, LAST, LAST),
    "window": ({**LAST, "saif_start": 2, "saif_stop": 5},) * 3,
    "changed": (LAST, OTHER, OTHER),
    "given_up": (LAST, None, None),
    "taken_up": (None, LAST, LAST),
    "below_the_last_layer": ({"saif": "clamp_middle"},) * 3,
}
SERVED = ("unsteered", "steered", "window")
REFUSED = ("changed", "given_up", "taken_up")
# What becomes of a session's set between its first two pieces: it is removed, or replaced.
CHANGES = {"vector_last": None, "scale_last": "clamp_last"}


def session(asked: Sequence[dict[str, Any] | None], wait: bool = True) -> dict[str, Any]:
    return {
        "pieces": [
            {"prompt": prompt, "extra_args": extra_args, "max_tokens": N_TOKENS, "wait": wait}
            for prompt, extra_args in zip(embedded_sets.prompts(3), asked, strict=True)
        ]
    }


def session_with(name: str) -> dict[str, Any]:
    """Make a session of one set throughout."""
    return session([{"saif": name}] * 3)


@pytest.fixture(scope="module")
def served(set_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    # Each session's pieces come one by one when the last is answered, then all at once.
    batches: list[Any] = [
        [session(asked, wait) for asked in SESSIONS.values()] for wait in (True, False)
    ]
    batches.append([session(SESSIONS[name]) for name in SERVED])
    # Their sets change under the first sessions of these, not under the later ones.
    batches += ([session_with(name) for name in CHANGES] for _ in range(2))
    for asked, (name, source) in zip(batches[-2], CHANGES.items(), strict=True):
        asked["pieces"][1]["sets"] = {name: source}
    batches.append("saif_state")
    own = shutil.copytree(set_dir, tmp_path_factory.mktemp("changing"), dirs_exist_ok=True)
    job = Job(
        model_path(),
        batches,
        set_dir=own,
        site=["core_state"],
        one_process=False,
        asynchronous=True,
    )
    return run(job).check()


@pytest.fixture(scope="module")
def answers(served: Served) -> list[dict[str, dict[str, Any]]]:
    names = (SESSIONS, SESSIONS, SERVED, CHANGES, CHANGES)
    return [
        dict(zip(n, batch, strict=True))
        for n, batch in zip(names, served.batches[:-1], strict=True)
    ]


def tokens_of(session: dict[str, Any], model: Any, sets: Mapping[str, LatentSet]) -> list[int]:
    """By vLLM's definition, a piece's prompt is all that was computed before it, and the piece."""
    prompt: list[int] = []
    expected: list[int] = []
    for piece in session["pieces"]:
        prompt += piece["prompt"]
        found = hf_reference.generate(model, sets, {**piece, "prompt": prompt})
        assert min(found["gaps"]) > hf_reference.NEAR_TIE
        expected += found["tokens"]
        prompt += found["tokens"][:-1]
    return expected


@pytest.mark.parametrize("name", SERVED)
def test_a_session_is_steered_alike_throughout(
    name: str, answers: Any, hf_model: Any, sets: Mapping[str, LatentSet]
) -> None:
    expected = tokens_of(session(SESSIONS[name]), hf_model, sets)
    # And the engine goes on when others were refused.
    for batch in answers[:3]:
        assert batch[name]["tokens"] == expected


@pytest.mark.parametrize("name", CHANGES)
def test_a_session_keeps_the_set_that_it_began_with(
    name: str, answers: Any, hf_model: Any, sets: Mapping[str, LatentSet]
) -> None:
    assert answers[3][name]["tokens"] == tokens_of(session_with(name), hf_model, sets)


def test_later_sessions_find_the_sets_that_there_are_then(
    answers: Any, hf_model: Any, sets: Mapping[str, LatentSet]
) -> None:
    assert answers[4]["vector_last"]["type"] == "SteeringRequestError"
    assert "unknown set 'vector_last'" in answers[4]["vector_last"]["error"]
    expected = tokens_of(session_with("clamp_last"), hf_model, sets)
    assert answers[4]["scale_last"]["tokens"] == expected


def test_nothing_is_left_behind(served: Served, sets: Mapping[str, LatentSet]) -> None:
    state = served.batches[-1]
    for name in ("requests", "uses of sets", "waiting for room", "streaming inputs"):
        assert state[name] == 0, state
    assert state["sets loaded"] == state["sets placed"] == len(sets) - len(CHANGES)


@pytest.mark.parametrize("name", REFUSED)
def test_a_session_that_changes_its_mind_ends_with_an_error(name: str, answers: Any) -> None:
    for batch in answers[:2]:
        assert batch[name]["type"] == "SteeringRequestError"
        assert "expected the same in all pieces" in batch[name]["error"]


def test_sets_below_the_last_layer_are_refused(answers: Any) -> None:
    for batch in answers[:2]:
        refused = batch["below_the_last_layer"]
        assert refused["type"] == "SteeringRequestError"
        assert "expected sets at the last layer with streaming input" in refused["error"]


def test_sessions_are_reported_once(served: Served) -> None:
    assert all(report["steered"] == report["planned"] for report in served.reports)
    steered = {name: [] for name in ("steered", "window")}
    for batch, names in enumerate((tuple(SESSIONS), tuple(SESSIONS), SERVED)):
        for name, found in steered.items():
            request_id = f"{batch}.{names.index(name)}"
            found += [x["planned"] for x in served.reports if x["request_id"] == request_id]
    # The last token of a piece is dropped: the next piece's first one takes its place.
    assert steered == {"steered": [3 * N_TOKENS] * 3, "window": [3 * 3] * 3}
