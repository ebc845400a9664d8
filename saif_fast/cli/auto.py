"""``saif identify --auto``: the search, shown as it goes, and what it found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from saif_fast.cli.app import out, say
from saif_fast.cli.track import track_of
from saif_fast.evaluate.document import ResultsDocument, write_results
from saif_fast.evaluate.record import run_of
from saif_fast.evaluate.subject import Subject
from saif_fast.identify import ContrastPairs
from saif_fast.latent_set import LatentSet
from saif_fast.search import ROUNDS, Standing, best_of_methods, search
from saif_fast.search.found import counts, described, found_set, parameters
from saif_fast.search.record import chosen
from saif_fast.tasks import Task

N_EXAMPLES = 4


def find_set(
    task: Task,
    subject: Subject,
    *,
    pairs: ContrastPairs,
    model: str,
    runtime: str,
    size: int,
    windows: Sequence[str],
    journal: Path | None,
    seed: int,
    results: Path | None = None,
) -> LatentSet:
    """Search for the set that makes the model follow a task best, and show what was found.

    Args:
        task: the task.
        subject: the model and its SAEs.
        pairs: pairs of the instruction.
        model: what ``--model`` names, for the runtime.
        runtime: name of the runtime that tries the candidates.
        size: candidates per method.
        windows: names of the windows that are searched.
        journal: a file for the replies; None = none.
        seed: seed of every draw.
        results: a file for a results document of the search; None = none. It is written even if no
            candidate makes the model follow.

    Returns:
        The best set, with the search in its provenance.

    Raises:
        ValueError: no candidate that is a set makes the model follow.

    Examples:
        >>> find_set(task, subject, pairs=pairs, model="smollm2", runtime="vllm", size=80,
        ...          windows=["generated"], journal=None, seed=0)
    """
    started = time.monotonic()
    with track_of(subject, model, runtime) as track:
        standings = search(
            task,
            subject,
            track,
            pairs=pairs,
            size=size,
            windows=windows,
            journal=journal,
            seed=seed,
        )
    out.print(table(task, standings))
    if results is not None:
        run = run_of(
            subject,
            runtime,
            seed=seed,
            candidates=size,
            seconds=time.monotonic() - started,
            windows=windows,
            rounds=ROUNDS,
        )
        recorded = {task.name: chosen(task, standings, subject, runtime)}
        write_results(ResultsDocument(run, recorded), results)
        say(f"wrote {results}")
    by_method = best_of_methods(standings)
    plain, asked = by_method["unsteered"], by_method["prompted"]
    best = next(each for each in standings if each.candidate.latent_set is not None)
    if best.outcome.score == 0:
        raise ValueError(
            f"search: expected a candidate that makes the model follow {task.name!r} in sound "
            f"text, got none of {len(standings)} (prompted: {counts(asked)}); no set is written; "
            "try another --sae, more --candidates, or a task that the model follows when asked"
        )
    replies = {reply.content: reply.text for reply in plain.replies}
    shown = [(reply.content, replies[reply.content], reply.text) for reply in best.replies]
    for line in examples(*zip(*shown, strict=True)):
        out.print(line, highlight=False, soft_wrap=True)
    say(f"found {described(best)}: {counts(best)}")
    for name, method in (("the prompt", "prompted"), ("a logit bias", "logit_bias")):
        other = by_method.get(method)
        if other is not None and other.outcome.score > best.outcome.score:
            say(f"warning: {name} does better: {counts(other)}")
    return found_set(best, task, standings, seed=seed)


def table(task: Task, standings: Sequence[Standing]) -> Table:
    """Make a table of the best candidate of each method, best first."""
    shown = Table(title=f"{task.name}: the best of each method", title_justify="left")
    for column in ("method", "of", "follow", "sound", "both", "score", "parameters"):
        shown.add_column(column, justify="left" if column in ("method", "parameters") else "right")
    sizes = Counter(standing.method for standing in standings)
    for method in dict.fromkeys(standing.method for standing in standings):
        best = next(standing for standing in standings if standing.method == method)
        outcome = best.outcome
        shown.add_row(
            method,
            str(sizes[method]),
            f"{outcome.strict}/{outcome.n}",
            f"{outcome.sound}/{outcome.n}" if outcome.strict else "-",
            f"{outcome.both}/{outcome.n}",
            f"{outcome.score:.2f}",
            parameters(best),
        )
    return shown


def examples(contents: Sequence[str], before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    """Yield lines that show the first replies without and with a set."""
    shown = list(zip(contents, before, after, strict=True))[:N_EXAMPLES]
    for content, plain, steered in shown:
        yield escape(content)
        yield f"  [dim]before:[/dim] {escape(' '.join(plain.split()))}"
        yield f"  [dim]after:[/dim]  {escape(' '.join(steered.split()))}"
