from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from random_model import tiny_model, tiny_sae, tiny_tokenizer
from shouter import TASK, Shouter, Soundness, candidate

from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.subject import Subject
from saif_fast.search.compare import best_of_methods, compare
from saif_fast.search.race import Outcome, Standing, Track
from saif_fast.tasks import Score


def standing(method: str, chosen: Candidate) -> Standing:
    return Standing(method, 0, chosen, Outcome(strict=1, loose=1, sound=1, both=0, n=4), 1, [])


SHOUT = dataclasses.replace(
    TASK, select=("content 9",), report=tuple(f"content {i}" for i in range(4))
)
WHISPER = dataclasses.replace(
    SHOUT, name="whisper", scorer=lambda content, reply: Score(reply.islower(), True)
)
TASKS = {"dir/shout.yaml": SHOUT, "whisper": WHISPER}
FOUND = {
    name: [standing("m", candidate(3)), standing("m", candidate(1)), standing("plain", Candidate())]
    for name in TASKS
}


@pytest.fixture
def subject() -> Subject:
    return Subject(tiny_model(), tiny_tokenizer(), tiny_sae())


@pytest.fixture(autouse=True)
def toy_soundness(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["saif_fast.search.compare"]  # the package has a function of that name
    monkeypatch.setattr(module, "YardstickSoundness", lambda *_: Soundness(broken=1))


def run(subject: Subject, track: Track, **options: Any) -> dict[str, dict[str, tuple[float, ...]]]:
    results, _ = compare(FOUND, TASKS, subject, track, **options)
    return {
        name: {method: (row.strict, row.quality or 0.0) for method, row in rows.items()}
        for name, rows in results.items()
    }


def test_the_best_of_each_method_comes_first() -> None:
    best = best_of_methods(FOUND["whisper"])
    assert list(best) == ["m", "plain"] and best["m"].candidate.parameters["obeyed"] == 3


def test_two_tasks_on_the_same_contents_are_scored_each_by_its_own(
    subject: Subject, track: Track
) -> None:
    assert run(subject, track) == {
        "dir/shout.yaml": {"m": (0.75, 0.75), "plain": (0.0, 0.75)},
        "whisper": {"m": (0.25, 0.75), "plain": (1.0, 0.75)},
    }


def test_each_reply_says_whether_it_is_sound(subject: Subject, track: Track) -> None:
    results, replies = compare(FOUND, TASKS, subject, track)
    shouted = replies["dir/shout.yaml"]["m"]
    assert [reply.sound for reply in shouted] == [False, True, True, True]
    assert results["dir/shout.yaml"]["m"].both == 0.5


def test_fewer_report_contents_are_the_first_ones(subject: Subject, track: Track) -> None:
    assert run(subject, track, n_report=2)["dir/shout.yaml"]["m"] == (1.0, 0.5)


def test_a_report_goes_on_where_it_stopped_and_only_with_the_same_subject(
    subject: Subject, track: Track, tmp_path: Path
) -> None:
    journal = tmp_path / "report.jsonl"
    first = run(subject, track, journal=journal)
    silent = dataclasses.replace(track, runtime=Shouter(track.sets, calls=0))
    assert run(subject, silent, journal=journal) == first
    other = dataclasses.replace(subject, chat=False)
    with pytest.raises(ValueError, match="same settings, got one with chat True, not False"):
        run(other, track, journal=journal)
