"""A comparison of methods: the best candidate of each, on contents that no search has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from saif_fast.evaluate.intervals import wilson
from saif_fast.evaluate.results import ResultRow
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Reply, Trial
from saif_fast.search.find import settings_of
from saif_fast.search.journal import Journal
from saif_fast.search.race import Outcome, Standing, Track, outcomes_of
from saif_fast.search.soundness import YardstickSoundness
from saif_fast.tasks import Task


def best_of_methods(standings: Sequence[Standing]) -> dict[str, Standing]:
    """Return the best standing of each method, best method first."""
    best: dict[str, Standing] = {}
    for standing in standings:
        best.setdefault(standing.method, standing)
    return best


def compare(
    found: Mapping[str, Sequence[Standing]],
    tasks: Mapping[str, Task],
    subject: Subject,
    track: Track,
    *,
    n_report: int | None = None,
    journal: Path | None = None,
) -> tuple[dict[str, dict[str, ResultRow]], dict[str, dict[str, Sequence[Reply]]]]:
    """Run the best candidate of each method on the report contents, all tasks in one mixed batch.

    Args:
        found: the standings of each task's search, by task.
        tasks: the tasks, by the same names.
        subject: the model and its SAEs.
        track: what the candidates run on.
        n_report: number of report contents that are used; None = all.
        journal: a file for the replies; None = none.

    Returns:
        Results, and replies with their soundness, by task and method.

    Examples:
        >>> results, replies = compare({"french": standings}, {"french": task}, subject, track)
        >>> results["french"]["saif"].strict
    """
    trials: dict[str, dict[str, Trial]] = {}
    for i, (name, standings) in enumerate(found.items()):
        contents = tasks[name].report[:n_report]
        trials[name] = {
            method: Trial(f"task{i}.{method}", tasks[name], standing.candidate, contents)
            for method, standing in best_of_methods(standings).items()
        }
    planned = [trial for by_method in trials.values() for trial in by_method.values()]
    settings = settings_of(list(tasks.values()), subject, track)
    kept = Journal(journal, {**settings, "n_report": n_report})
    answered = iter(track.run(planned, kept))
    results: dict[str, dict[str, ResultRow]] = {}
    replies: dict[str, dict[str, Sequence[Reply]]] = {}
    for name, by_method in trials.items():
        soundness = YardstickSoundness(tasks[name], track.prompter, track.runtime)
        own = [next(answered) for _ in by_method]
        outcomes = outcomes_of(list(by_method.values()), own, soundness, kept, ask_all=True)
        sizes, best = Counter(s.method for s in found[name]), best_of_methods(found[name])
        results[name] = {
            method: row_of(best[method], outcome, sizes[method], track.name)
            for method, outcome in zip(by_method, outcomes, strict=True)
        }
        replies[name] = {
            method: [
                reply._replace(sound=sound)
                for reply, sound in zip(each, kept.sound(trial) or [], strict=True)
            ]
            for (method, trial), each in zip(by_method.items(), own, strict=True)
        }
    return results, replies


def row_of(chosen: Standing, outcome: Outcome, candidates: int, runtime: str) -> ResultRow:
    """Make the row of a method's chosen candidate.

    Args:
        chosen: the candidate, with its outcome on the select contents.
        outcome: the outcome to report.
        candidates: number of candidates that it was chosen from.
        runtime: name of the runtime that generated the replies.

    Examples:
        >>> row_of(standing, outcome, 83, "vllm").quality
    """
    low, high = wilson(outcome.strict, outcome.n)
    return ResultRow(
        strict=outcome.obedience,
        loose=outcome.loose / outcome.n,
        low=low,
        high=high,
        n=outcome.n,
        selected=chosen.outcome.obedience,
        candidates=candidates,
        parameters=dict(chosen.candidate.parameters),
        runtime=runtime,
        quality=outcome.quality,
        score=outcome.score,
        both=outcome.both / outcome.n,
    )
