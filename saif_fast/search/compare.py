"""A comparison of methods: the best candidate of each, on contents that no search has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from saif_fast.evaluate.intervals import wilson
from saif_fast.evaluate.methods import Candidate
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
    chosen = {
        name: {method: each.candidate for method, each in best_of_methods(standings).items()}
        for name, standings in found.items()
    }
    outcomes, replies = measure(chosen, tasks, subject, track, n_report=n_report, journal=journal)
    results = {}
    for name, standings in found.items():
        sizes, best = Counter(each.method for each in standings), best_of_methods(standings)
        results[name] = {
            method: row_of(best[method], outcome, sizes[method], track.name)
            for method, outcome in outcomes[name].items()
        }
    return results, replies


def measure(
    candidates: Mapping[str, Mapping[str, Candidate]],
    tasks: Mapping[str, Task],
    subject: Subject,
    track: Track,
    *,
    n_report: int | None = None,
    journal: Path | None = None,
) -> tuple[dict[str, dict[str, Outcome]], dict[str, dict[str, Sequence[Reply]]]]:
    """Run candidates on the report contents of tasks, all in one mixed batch.

    Args:
        candidates: candidates by task and name.
        tasks: as in :func:`compare`.
        subject: as in :func:`compare`.
        track: as in :func:`compare`.
        n_report: as in :func:`compare`.
        journal: as in :func:`compare`.

    Returns:
        Outcomes, and replies with their soundness, by task and name.

    Examples:
        >>> steered = {"french": {"my set": Candidate(latent_set=LatentSet.load("french"))}}
        >>> outcomes, replies = measure(steered, {"french": task}, subject, track, n_report=100)
        >>> outcomes["french"]["my set"].both
    """
    trials = {
        name: {
            method: Trial(f"task{i}.{j}", tasks[name], candidate, tasks[name].report[:n_report])
            for j, (method, candidate) in enumerate(by_method.items())
        }
        for i, (name, by_method) in enumerate(candidates.items())
    }
    planned = [trial for by_method in trials.values() for trial in by_method.values()]
    settings = settings_of(list(tasks.values()), subject, track)
    kept = Journal(journal, {**settings, "n_report": n_report})
    answered = iter(track.run(planned, kept))
    outcomes: dict[str, dict[str, Outcome]] = {}
    replies: dict[str, dict[str, Sequence[Reply]]] = {}
    for name, by_method in trials.items():
        soundness = YardstickSoundness(tasks[name], track.prompter, track.runtime)
        own = [next(answered) for _ in by_method]
        found = outcomes_of(list(by_method.values()), own, soundness, kept, ask_all=True)
        outcomes[name] = dict(zip(by_method, found, strict=True))
        replies[name] = {
            method: [
                reply._replace(sound=sound)
                for reply, sound in zip(each, kept.sound(trial) or [], strict=True)
            ]
            for (method, trial), each in zip(by_method.items(), own, strict=True)
        }
    return outcomes, replies


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
