from __future__ import annotations

import msgspec
import pytest
from made_up import ROWS, row, task

from saif_fast.evaluate.document import TaskResults
from saif_fast.evaluate.results import ResultRow
from saif_fast.report.verdict import Verdict, judge


def verdict(*left_out: str, **rows: ResultRow) -> Verdict:
    kept = {method: each for method, each in ROWS.items() if method not in left_out}
    return judge(TaskResults("Answer in French.", "report", 96, {**kept, **rows}))


@pytest.mark.parametrize(
    ("rows", "kind", "headline"),
    [
        ({"project": row(60, 71, 48)}, "good", "Steering reaches the prompt."),
        ({"project": row(95, 95, 95)}, "good", "Steering beats the prompt."),
        ({}, "even", "The prompt does a little better, but that may be chance."),
        ({"prompted": row(95, 95, 95)}, "bad", "The prompt does better."),
        ({"logit_bias": row(90, 90, 85)}, "bad", "A logit bias does better."),
        ({"random": row(50, 60, 40)}, "bad", "Steering does not clearly do more than chance."),
        ({"unsteered": row(50, 90, 45)}, "bad", "Steering does not clearly do more than nothing."),
    ],
)
def test_the_headline_says_what_does_best(
    rows: dict[str, ResultRow], kind: str, headline: str
) -> None:
    found = verdict(**rows)
    assert (found.kind, found.headline, found.best) == (kind, headline, "project")


def test_the_numbers_are_told_with_intervals() -> None:
    told = str(verdict())
    assert "Best is project at layer 17: 60/100 (50–69 %) follow, 71/100 are sound, 46/100" in told
    assert "Prompted: 63/100 follow, 70/100 are sound, 48/100 both." in told
    assert "A logit bias does less: 12/100 follow" in told
    assert "Random latents or noise, searched alike, do less: 2/100 follow" in told


def test_a_logit_bias_that_may_do_as_well_makes_steering_no_clear_success() -> None:
    found = verdict(project=row(60, 71, 48), logit_bias=row(50, 80, 44))
    assert (found.kind, found.headline) == ("even", "Steering reaches the prompt.")
    assert "A logit bias may do as well, and costs nothing: 50/100 follow" in str(found)
    found = verdict(project=row(60, 71, 48), logit_bias=row(60, 80, 48))
    assert "A logit bias does as well, and costs nothing: 60/100 follow" in str(found)


def test_no_steering_that_follows_and_none_at_all() -> None:
    steering = {method: row(0, 90, 0, layer=1) for method in ("saif", "live", "project")}
    found = verdict("diff_in_means", **steering)
    assert (found.kind, found.headline) == ("bad", "No steering makes the model follow.")
    none = verdict("saif", "live", "project", "diff_in_means")
    assert (none.headline, none.best) == ("No steering was tried.", None)


def test_replies_that_follow_but_are_never_sound() -> None:
    steering = {method: row(50, 50, 0, layer=1) for method in ("saif", "live", "project")}
    found = verdict("diff_in_means", **steering)
    assert found.headline == "No steered reply both follows and is sound."
    assert "may not fit" not in str(found)
    asked = verdict("diff_in_means", prompted=row(100, 0, 0), **steering)
    assert "soundness may not fit what is asked here" in str(asked)


def test_who_follows_more_without_being_sound_is_named() -> None:
    assert "By following alone" not in str(verdict())
    found = verdict(project=row(50, 90, 49))
    assert found.headline == "Steering reaches the prompt."
    assert "By following alone, the prompt is ahead." in str(found)


def test_without_quality_what_follows_is_compared() -> None:
    plain = {"prompted": row(100), "unsteered": row(0), "saif": row(94, k=3), "noise": row(10, k=1)}
    found = judge(TaskResults("Answer in French.", "report", 24, plain))
    assert found.headline == "The prompt does better." and "sound" not in str(found)
    assert "Best is saif: 94/100 (88–97 %) follow." in str(found)


def test_the_contents_that_candidates_were_chosen_on_are_no_proof() -> None:
    assert "were chosen on: expect less on others" in str(judge(task("select")))
    assert "were chosen on" not in str(judge(task()))
    searched = msgspec.structs.replace(task("select"), rows={})
    assert judge(searched).headline == "No steering was tried."
