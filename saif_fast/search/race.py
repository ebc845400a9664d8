"""A race: candidates tried on a few contents, the best of them on more (successive halving)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import NamedTuple

from saif_fast.evaluate.methods import Candidate, Method
from saif_fast.evaluate.trials import Reply, Trial, answer, sets_of
from saif_fast.runtime import Runtime
from saif_fast.search.journal import Journal
from saif_fast.set_dir import SetDirectory
from saif_fast.tasks import Prompter, Task

# Requests per call of the runtime: enough for full batches, few enough to lose little when a search
# is interrupted.
_REQUESTS_PER_CALL = 1024


class Round(NamedTuple):
    """One round: each candidate answers ``contents`` select contents, and ``keep`` go on.

    A reply has ``max_tokens`` at most, but never fewer than the task can judge, nor more than it
    allows.
    """

    contents: int
    max_tokens: int
    keep: int


ROUNDS = (Round(contents=8, max_tokens=32, keep=20), Round(contents=40, max_tokens=64, keep=1))


class Outcome(NamedTuple):
    """Counts over the replies of one candidate, out of ``n``."""

    strict: int  # do fully what was asked
    loose: int  # do it at least in part
    sound: int  # are fluent, on the topic, and no loops: see :mod:`saif_fast.quality`
    both: int  # strict and sound
    n: int

    @property
    def obedience(self) -> float:
        """Share of strictly right replies."""
        return self.strict / self.n

    @property
    def quality(self) -> float:
        """Share of sound replies."""
        return self.sound / self.n

    @property
    def score(self) -> float:
        """Harmonic mean of obedience and quality; 0 where either is 0."""
        return harmonic_mean([self.obedience, self.quality])


@dataclass(frozen=True)
class Standing:
    """A candidate, and its outcome in the last round that it took part in."""

    method: str
    index: int  # of the candidate among its method's
    candidate: Candidate
    outcome: Outcome
    round: int
    replies: Sequence[Reply]

    @property
    def rank(self) -> tuple[float, ...]:
        """What standings are ordered by; larger is better."""
        outcome = self.outcome
        return self.round, outcome.score, outcome.both / outcome.n, outcome.loose / outcome.n


# Tells of each reply of a candidate, which has a number of tokens at most, whether it is sound.
Soundness = Callable[[Sequence[tuple[Candidate, Reply]], int], Sequence[bool]]


@dataclass(frozen=True)
class Track:
    """What a race runs on.

    Attributes:
        name: the runtime's.
        runtime: generates.
        sets: the directory that the runtime reads its sets from.
        prompter: turns a content and an instruction into the model's text.
        say: prints a line of progress.
    """

    name: str
    runtime: Runtime
    sets: SetDirectory
    prompter: Prompter
    say: Callable[[str], None]

    def run(self, trials: Sequence[Trial], journal: Journal) -> list[list[Reply]]:
        """Answer the trials that the journal does not have, some at a time."""
        todo = [trial for trial in trials if not journal.has_texts(trial)]
        started, done = time.monotonic(), 0
        total = sum(len(trial.contents) for trial in todo)
        for calls in _parts(todo):
            sets, names = sets_of(calls)
            for label, latent_set in sets.items():
                latent_set.save(self.sets.path(label))
            texts = answer(calls, self.prompter, self.runtime, names)
            for trial, each in zip(calls, texts, strict=True):
                journal.add_texts(trial, each)
                done += len(each)
            left = (time.monotonic() - started) / done * (total - done)
            self.say(f"  {done} of {total} replies, {left:.0f} s left")
        return [journal.replies(trial) for trial in trials]


def _parts(trials: Sequence[Trial]) -> list[list[Trial]]:
    parts: list[list[Trial]] = []
    room = 0
    for trial in trials:
        if len(trial.contents) > room or not parts:
            parts.append([])
            room = _REQUESTS_PER_CALL
        parts[-1].append(trial)
        room -= len(trial.contents)
    return parts


def race(
    task: Task,
    methods: Sequence[Method],
    track: Track,
    soundness: Soundness,
    journal: Journal,
    rounds: Sequence[Round] = ROUNDS,
) -> list[Standing]:
    """Run all candidates of all methods, the best of them on more and more contents.

    Besides the ``keep`` best of all candidates, the best of each method goes on, so that methods
    can be compared.

    Args:
        task: the task whose scorer judges the replies; its select contents are used.
        methods: the candidates.
        track: what the race runs on.
        soundness: tells whether replies are sound.
        journal: replies that are there already, and where new ones go.
        rounds: the rounds.

    Returns:
        All candidates, best first: those of the last round before those of earlier ones.

    Examples:
        >>> best, *others = race(task, methods, track, soundness, Journal(None, settings))
    """
    entries = [
        (method.name, i, candidate)
        for method in methods
        for i, candidate in enumerate(method.candidates)
    ]
    out: list[Standing] = []
    for number, (n_contents, max_tokens, keep) in enumerate(rounds):
        contents = task.select[:n_contents]
        track.say(f"round {number + 1}: {len(entries)} candidates on {len(contents)} contents")
        tokens = reply_tokens(task, max_tokens)
        trials = [
            Trial(f"{method}.{i}", task, candidate, contents, tokens)
            for method, i, candidate in entries
        ]
        answered = track.run(trials, journal)
        outcomes = outcomes_of(trials, answered, soundness, journal)
        standings = [
            Standing(*entry, outcome, number, replies)
            for entry, outcome, replies in zip(entries, outcomes, answered, strict=True)
        ]
        order = sorted(range(len(entries)), key=lambda i: standings[i].rank, reverse=True)
        if number + 1 == len(rounds):
            kept: set[int] = set()
        else:
            best_of: dict[str, int] = {}
            for i in order:
                best_of.setdefault(standings[i].method, i)
            kept = {*order[:keep], *best_of.values()}
        out = [*(standings[i] for i in order if i not in kept), *out]
        entries = [entries[i] for i in order if i in kept]
    return out


def reply_tokens(task: Task, wished: int) -> int:
    """Return the length of replies nearest to ``wished`` that the task allows and can judge."""
    return min(max(wished, task.min_tokens), task.max_tokens)


def outcomes_of(
    trials: Sequence[Trial],
    answered: Sequence[Sequence[Reply]],
    soundness: Soundness,
    journal: Journal,
    *,
    ask_all: bool = False,
) -> list[Outcome]:
    """Return the outcome of each trial.

    Whether replies are sound is asked for all trials at once, and kept in the journal. Where no
    reply obeys it is not asked, and none counts as sound: the score is 0 anyway.

    Args:
        trials: the trials, whose replies have equally many tokens at most.
        answered: the replies of each.
        soundness: tells whether replies are sound.
        journal: what is known already, and where the rest goes.
        ask_all: ask where no reply obeys, too.

    Examples:
        >>> [outcome.score for outcome in outcomes_of(trials, replies, soundness, journal)]
    """
    asked = [
        (trial, replies)
        for trial, replies in zip(trials, answered, strict=True)
        if journal.sound(trial) is None
        and (ask_all or any(reply.score.strict for reply in replies))
    ]
    items = [(trial.candidate, reply) for trial, replies in asked for reply in replies]
    verdicts = iter(soundness(items, trials[0].tokens) if items else [])
    for trial, replies in asked:
        journal.add_sound(trial, [next(verdicts) for _ in replies])
    outcomes = []
    for trial, replies in zip(trials, answered, strict=True):
        scores = [reply.score for reply in replies]
        sound = journal.sound(trial) or [False] * len(replies)
        outcomes.append(
            Outcome(
                strict=sum(score.strict for score in scores),
                loose=sum(score.loose for score in scores),
                sound=sum(sound),
                both=sum(s.strict and good for s, good in zip(scores, sound, strict=True)),
                n=len(scores),
            )
        )
    return outcomes
