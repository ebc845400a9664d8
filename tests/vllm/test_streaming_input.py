"""Prompts that come in pieces: steered alike throughout, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
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


def session(name: str, wait: bool) -> dict[str, Any]:
    pieces = zip(embedded_sets.prompts(3), SESSIONS[name], strict=True)
    return {
        "pieces": [
            {"prompt": prompt, "extra_args": asked, "max_tokens": N_TOKENS, "wait": wait}
            for prompt, asked in pieces
        ]
    }


@pytest.fixture(scope="module")
def served(set_dir: Path) -> Served:
    # Each session's pieces come one by one when the last is answered, then all at once.
    batches = [[session(name, wait) for name in SESSIONS] for wait in (True, False)]
    batches.append([session(name, wait=True) for name in SERVED])
    job = Job(model_path(), batches, set_dir=set_dir, one_process=False, asynchronous=True)
    return run(job).check()


@pytest.fixture(scope="module")
def answers(served: Served) -> list[dict[str, dict[str, Any]]]:
    names = (SESSIONS, SESSIONS, SERVED)
    return [
        dict(zip(n, batch, strict=True)) for n, batch in zip(names, served.batches, strict=True)
    ]


@pytest.mark.parametrize("name", SERVED)
def test_a_session_is_steered_alike_throughout(
    name: str, answers: Any, hf_model: Any, sets: Mapping[str, LatentSet]
) -> None:
    # By vLLM's definition, a piece's prompt is all that was computed before it, and the piece.
    prompt: list[int] = []
    expected: list[int] = []
    for piece in session(name, wait=True)["pieces"]:
        prompt += piece["prompt"]
        found = hf_reference.generate(hf_model, sets, {**piece, "prompt": prompt})
        assert min(found["gaps"]) > hf_reference.NEAR_TIE
        expected += found["tokens"]
        prompt += found["tokens"][:-1]
    # And the engine goes on when others were refused.
    for batch in answers:
        assert batch[name]["tokens"] == expected


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
