"""Proof of steering in a real engine: what the report says, and what happens when a hook fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_job import MODES, Job, Served, run

from saif_fast.embedded import model_path
from saif_fast.request import parse_request

pytestmark = pytest.mark.engine


def tokens_inside(asked: Mapping[str, Any]) -> int:
    """Positions of a request inside its window, by the definition; the last token is not fed."""
    window = parse_request(asked["extra_args"], available=SetsThatExist()).window  # type: ignore[union-attr]
    prompt_len = len(asked["prompt"])
    generated = range(1 - prompt_len, asked["max_tokens"])
    return sum(window.prompt if g < 0 else window.start <= g < window.stop for g in generated)


class SetsThatExist(frozenset[str]):
    def __contains__(self, name: object) -> bool:
        return True


@pytest.mark.parametrize("mode", MODES)
def test_every_token_in_a_window_is_steered_and_no_other(
    mode: str, serve: Callable[[str], Served], requests: Mapping[str, dict[str, Any]]
) -> None:
    steered = [asked for asked in requests.values() if asked["extra_args"] is not None]
    reports = serve(mode).reports[: len(steered)]  # of the mixed batch; solo runs come later
    for asked, report in zip(steered, reports, strict=True):
        assert report["planned"] == report["steered"] == tokens_inside(asked), asked["extra_args"]


def test_the_dose_is_where_the_sets_are(
    serve: Callable[[str], Served], requests: Mapping[str, dict[str, Any]]
) -> None:
    steered = [name for name, asked in requests.items() if asked["extra_args"] is not None]
    doses = {
        name: {int(layer): dose["max"] for layer, dose in report["dose"].items()}
        for name, report in zip(steered, serve("v1-eager").reports, strict=False)
    }
    for name, dose in doses.items():
        assert set(dose) == {1, 2}
        if name.endswith("_middle"):
            assert dose[1] > 0 == dose[2]
        if name.endswith("_last"):
            assert dose[2] > 0 == dose[1]
    # The same vector: half of the strength is half of the change.
    assert doses["strength"][2] < doses["add_last"][2]


MISSED = "1 tokens that should have been steered were not; the engine stops"


def stopped(
    batch: Sequence[Mapping[str, Any]],
    set_dir: Path,
    sabotage: str = "hook_goes_quiet",
    last_call: int = 9,
    **job: Any,
) -> str:
    """The log of an engine that starts, and stops before it has served anything."""
    env = {"SAIF_TEST_SABOTAGE": sabotage, "SAIF_TEST_LAST_CALL": str(last_call)}
    served = run(Job(model_path(), [batch], set_dir=set_dir, site=["sabotage"], env=env, **job))
    assert served.returncode != 0
    assert not served.batches
    return served.log


@pytest.mark.parametrize("one_process", [True, False], ids=["one_process", "processes"])
def test_a_hook_that_stops_steering_stops_the_engine(
    one_process: bool, set_dir: Path, requests: Mapping[str, dict[str, Any]]
) -> None:
    batch = [requests["add_last"], requests["unsteered"]]
    assert MISSED in stopped(batch, set_dir, one_process=one_process)


def test_no_step_is_needed_after_the_one_that_missed_a_token(
    set_dir: Path, requests: Mapping[str, dict[str, Any]]
) -> None:
    # One step, of two layers.
    batch = [{**requests["add_last"], "max_tokens": 1}]
    assert MISSED in stopped(batch, set_dir, last_call=1)


@pytest.mark.parametrize("mode", ["v1-eager", pytest.param("v2-eager", marks=pytest.mark.slow)])
def test_a_step_that_was_not_prepared_stops_the_engine(
    mode: str, set_dir: Path, requests: Mapping[str, dict[str, Any]]
) -> None:
    log = stopped([requests["add_last"]], set_dir, "runner_never_prepares", mode=mode)
    assert "a step ran that was not prepared for steering: the engine stops" in log
