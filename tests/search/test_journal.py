from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from shouter import CONTENTS, TASK, Shouter, Soundness, candidate, methods

from saif_fast.evaluate.trials import Trial
from saif_fast.search import race as race_module
from saif_fast.search.journal import Journal
from saif_fast.search.race import Round, Track, race
from saif_fast.tasks import Score

SETTINGS: dict[str, object] = {"task": "shout", "seed": 0, "rounds": [[4, 8, 1]]}
ROUNDS = [Round(4, 8, 1)]
TRIAL = Trial("m.0", TASK, candidate(3), CONTENTS[:2], 8)


def test_an_interrupted_search_goes_on_where_it_stopped(
    track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_module, "_REQUESTS_PER_CALL", 8)  # two candidates per call
    file, asked = tmp_path / "journal.jsonl", methods([0, 1, 2, 3, 4])
    first = dataclasses.replace(track, runtime=Shouter(track.sets, calls=2))
    with pytest.raises(KeyboardInterrupt):
        race(TASK, asked, first, Soundness(), Journal(file, SETTINGS), ROUNDS)
    resumed = race(TASK, asked, track, Soundness(), Journal(file, SETTINGS), ROUNDS)
    assert isinstance(track.runtime, Shouter) and len(track.runtime.requests) == 4
    whole = race(TASK, asked, track, Soundness(), Journal(None, SETTINGS), ROUNDS)
    assert [each.replies for each in resumed] == [each.replies for each in whole]


def test_scores_are_computed_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def scorer(content: str, reply: str) -> Score:
        asked.append(reply)
        return Score(True, True)

    file = tmp_path / "journal.jsonl"
    trial = dataclasses.replace(TRIAL, task=dataclasses.replace(TASK, scorer=scorer))
    journal = Journal(file, SETTINGS)
    journal.add_texts(trial, ["a", "b"])
    first = journal.replies(trial)
    assert Journal(file, SETTINGS).replies(trial) == first == journal.replies(trial)
    assert asked == ["a", "b"]


def test_what_is_sound_is_asked_once(track: Track, tmp_path: Path) -> None:
    file, soundness = tmp_path / "journal.jsonl", Soundness()
    for _ in range(2):
        race(TASK, methods([3]), track, soundness, Journal(file, SETTINGS), ROUNDS)
    assert len(soundness.seen) == 4


def test_the_replies_to_pairs_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, SETTINGS)
    assert journal.token_ids("a hash") is None
    journal.add_token_ids("a hash", [[1, 2], []])
    assert Journal(file, SETTINGS).token_ids("a hash") == [[1, 2], []]


def test_replies_outlive_a_scorer_that_fails(tmp_path: Path) -> None:
    def fails(content: str, reply: str) -> Score:
        raise ValueError("judge: no answer")

    file = tmp_path / "journal.jsonl"
    journal = Journal(file, SETTINGS)
    journal.add_texts(TRIAL, ["A", "b"])
    with pytest.raises(ValueError, match="no answer"):
        journal.replies(dataclasses.replace(TRIAL, task=dataclasses.replace(TASK, scorer=fails)))
    assert [r.text for r in Journal(file, SETTINGS).replies(TRIAL)] == ["A", "b"]


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, SETTINGS)
    journal.add_texts(TRIAL, ["A", "b"])
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "ab')
    assert Journal(file, SETTINGS).has_texts(TRIAL)
    assert file.read_bytes() == whole


def test_what_differs_is_another_trial(tmp_path: Path) -> None:
    journal = Journal(None, SETTINGS)
    journal.add_texts(TRIAL, ["A", "b"])
    options = dataclasses.replace(TRIAL.candidate, options={"saif_scope": "all"})
    for changes in (
        {"candidate": candidate(2)},
        {"candidate": options},
        {"candidate": dataclasses.replace(TRIAL.candidate, instructed=True)},
        {"candidate": dataclasses.replace(TRIAL.candidate, strength=2.0)},
        {"contents": CONTENTS[:1]},
        {"max_tokens": 9},
    ):
        assert not journal.has_texts(dataclasses.replace(TRIAL, **changes))  # type: ignore[arg-type]
    assert journal.has_texts(dataclasses.replace(TRIAL, label="another.label"))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    Journal(file, SETTINGS)
    with pytest.raises(ValueError, match=r"same settings, got one with seed 0, not 1; remove"):
        Journal(file, {**SETTINGS, "seed": 1})


def test_another_file_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes\n")
    with pytest.raises(ValueError, match="expected the journal of a search, got another file"):
        Journal(file, SETTINGS)
    assert file.read_text() == "my notes\n"
