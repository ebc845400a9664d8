from __future__ import annotations

import dataclasses

import pytest
from shouter import TASK, Shouter, Soundness, methods

from saif_fast.evaluate.methods import unsteered
from saif_fast.search.journal import Journal
from saif_fast.search.race import Outcome, Round, Track, race


def test_an_outcome_is_shares_of_its_replies() -> None:
    outcome = Outcome(strict=3, loose=4, sound=6, both=2, n=12)
    assert (outcome.obedience, outcome.quality) == (0.25, 0.5)
    assert outcome.score == pytest.approx(1 / 3)
    assert Outcome(strict=0, loose=0, sound=12, both=0, n=12).score == 0
    assert Outcome(strict=12, loose=12, sound=0, both=0, n=12).score == 0


def run(track: Track, *obeyed: list[int], rounds: list[Round] | None = None) -> list[int]:
    standings = race(
        TASK,
        methods(*obeyed),
        track,
        Soundness(),
        Journal(None, {}),
        rounds or [Round(4, 8, 2), Round(12, 16, 1)],
    )
    return [int(each.candidate.parameters["obeyed"]) for each in standings]


def test_the_best_win_and_the_last_round_decides(track: Track) -> None:
    # Four contents cannot tell 4, 8 and 12 apart, so the first two of them go on.
    assert run(track, [1, 4, 12, 8, 0]) == [12, 4, 8, 1, 0]


def test_the_best_of_every_method_goes_on(track: Track) -> None:
    standings = race(
        TASK,
        methods([3, 4, 2], [1, 0]),
        track,
        Soundness(),
        Journal(None, {}),
        [Round(4, 8, 1), Round(12, 16, 1)],
    )
    assert [(each.method, each.round) for each in standings[:2]] == [("m0", 1), ("m1", 1)]
    assert [each.round for each in standings[2:]] == [0, 0, 0]


def test_rounds_ask_as_many_contents_and_tokens_as_they_say(track: Track) -> None:
    run(track, [1, 2, 3])
    assert isinstance(track.runtime, Shouter)
    lengths = [request.max_tokens for request in track.runtime.requests]
    assert lengths == [8] * 4 * 3 + [16] * 12 * 2


@pytest.mark.parametrize(("least", "most", "tokens"), [(1, 100, 8), (20, 100, 20), (1, 5, 5)])
def test_a_round_gives_a_task_the_tokens_that_it_needs(
    track: Track, least: int, most: int, tokens: int
) -> None:
    task = dataclasses.replace(TASK, min_tokens=least, max_tokens=most)
    race(task, methods([1]), track, Soundness(), Journal(None, {}), [Round(2, 8, 1)])
    assert isinstance(track.runtime, Shouter)
    assert {request.max_tokens for request in track.runtime.requests} == {tokens}


def test_quality_decides_between_equally_obedient_candidates(track: Track) -> None:
    (best, *_) = race(
        TASK, methods([4]), track, Soundness(broken=2), Journal(None, {}), [Round(4, 8, 1)]
    )
    assert best.outcome == Outcome(strict=4, loose=4, sound=2, both=2, n=4)


def test_the_quality_of_what_never_obeys_is_not_asked(track: Track) -> None:
    soundness = Soundness()
    asked = [unsteered(), *methods([0])]
    standings = race(TASK, asked, track, soundness, Journal(None, {}), [Round(4, 8, 1)])
    assert soundness.seen == []
    assert {each.outcome.sound for each in standings} == {0}


def test_progress_is_said(track: Track) -> None:
    lines: list[str] = []
    run(dataclasses.replace(track, say=lines.append), [1, 2], rounds=[Round(4, 8, 1)])
    assert lines[0] == "round 1: 2 candidates on 4 contents"
    assert lines[1] == "  8 of 8 replies, 0 s left"
