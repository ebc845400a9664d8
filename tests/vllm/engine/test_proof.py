"""Proof of steering in a real engine: what the report says, and what happens when a hook fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from embedded_sets import N_TOKENS
from engine_job import MODES, Job, Served, run
from hf_reference import Comparison

from saif_fast.embedded import model_path
from saif_fast.request import parse_request
from saif_vllm.reporting import RequestReport

pytestmark = pytest.mark.engine


def tokens_inside(asked: Mapping[str, Any]) -> int:
    """Count a request's positions inside its window, by the definition; the last is not fed."""
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
    """Return the log of an engine that starts, and stops before it has served anything."""
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


MAX_DOSE, WARN_DOSE = 0.1, 0.05


@pytest.fixture(scope="module")
def limited_requests(
    requests: Mapping[str, dict[str, Any]], reference: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    last = reference["unsteered"]["tokens"][-1]
    return {
        **{name: requests[name] for name in ("unsteered", "add_last", "clamp_middle", "both")},
        "faint": {**requests["unsteered"], "extra_args": {"saif": "vector_last*0.01"}},
        # A generation that ends before its window begins.
        "late": {
            **requests["unsteered"],
            "max_tokens": N_TOKENS + 1,
            "params": {"stop_token_ids": [last]},
            "extra_args": {"saif": "add_last", "saif_start": N_TOKENS},
        },
    }


@pytest.fixture(scope="module")
def limited(limited_requests: Mapping[str, dict[str, Any]], set_dir: Path) -> Served:
    limits = {"max_dose": MAX_DOSE, "warn_dose": WARN_DOSE}
    batch = list(limited_requests.values())
    return run(Job(model_path(), [batch], set_dir=set_dir, engine_args=limits)).check()


@pytest.fixture(scope="module")
def got(
    limited: Served, limited_requests: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    return dict(zip(limited_requests, limited.batches[0], strict=True))


@pytest.fixture(scope="module")
def reports(
    limited: Served, limited_requests: Mapping[str, dict[str, Any]]
) -> dict[str, RequestReport]:
    steered = [name for name, asked in limited_requests.items() if asked["extra_args"] is not None]
    found = msgspec.convert(limited.reports, list[RequestReport], strict=False)
    return dict(zip(steered, found, strict=True))


def highest(report: RequestReport) -> float:
    return max(dose.max for dose in report.dose.values())


def test_a_dose_is_brought_down_to_the_cap(
    got: Mapping[str, Any], reports: Mapping[str, RequestReport], reference: Mapping[str, Any]
) -> None:
    for name in ("add_last", "clamp_middle", "both"):
        assert highest(reports[name]) == pytest.approx(MAX_DOSE, rel=1e-3)
        assert got[name]["tokens"] != reference[name]["tokens"]
    assert 0 < highest(reports["faint"]) < WARN_DOSE
    comparison = Comparison()
    comparison.add("unsteered", reference["unsteered"], got["unsteered"])
    comparison.check(most_excused=0)


def test_each_request_above_the_warning_dose_is_warned_of_once(
    limited: Served, reports: Mapping[str, RequestReport]
) -> None:
    warned = re.findall(r"request (\S+) \(.*\): steering changes the residual stream", limited.log)
    above = [report.request_id for report in reports.values() if highest(report) > WARN_DOSE]
    assert sorted(warned) == sorted(above)
    assert len(above) == 3


def test_a_window_that_is_never_reached_is_no_error(
    got: Mapping[str, Any], reports: Mapping[str, RequestReport], reference: Mapping[str, Any]
) -> None:
    late = reports["late"]
    assert late.planned == late.steered == highest(late) == 0
    assert [name for name in reports if not reports[name].window_reached] == ["late"]
    comparison = Comparison()
    beginning = reference["unsteered"]["tokens"][: len(got["late"]["tokens"])]
    comparison.add("late", {**reference["unsteered"], "tokens": beginning}, got["late"])
    comparison.check(most_excused=0)
