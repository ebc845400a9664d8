"""The results document of searches: what was tried, what was chosen, and how it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from saif_fast.evaluate.document import TaskResults, TriedCandidate
from saif_fast.evaluate.record import examples_of, latents_by_method
from saif_fast.evaluate.results import ResultRow
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Reply
from saif_fast.logit_bias import Unembedding
from saif_fast.search.compare import best_of_methods, row_of
from saif_fast.search.race import ROUNDS, Standing, reply_tokens
from saif_fast.tasks import Task


def reported(
    task: Task,
    standings: Sequence[Standing],
    rows: Mapping[str, ResultRow],
    replies: Mapping[str, Sequence[Reply]],
    subject: Subject,
) -> TaskResults:
    """Record a search and what its best candidates did on the report contents.

    Args:
        task: the task.
        standings: its search's.
        rows: results by method, of :func:`saif_fast.search.compare`.
        replies: the replies behind them.
        subject: the model and its SAEs.

    Examples:
        >>> found = {"french": search(task, subject, track)}
        >>> results, replies = compare(found, {"french": task}, subject, track)
        >>> reported(task, found["french"], results["french"], replies["french"], subject)
    """
    return _recorded(task, standings, rows, replies, subject, "report", task.max_tokens)


def chosen(
    task: Task, standings: Sequence[Standing], subject: Subject, runtime: str
) -> TaskResults:
    """Record a search and what its best candidates did on the contents they were chosen on.

    Args:
        task: the task.
        standings: its search's.
        subject: the model and its SAEs.
        runtime: name of the runtime that generated the replies.

    Examples:
        >>> chosen(task, search(task, subject, track), subject, "vllm").contents
        'select'
    """
    sizes = Counter(standing.method for standing in standings)
    best = best_of_methods(standings)
    rows = {
        method: _row_on_select(standing, sizes[method], runtime)
        for method, standing in best.items()
    }
    replies = {method: standing.replies for method, standing in best.items()}
    tokens = reply_tokens(task, ROUNDS[-1].max_tokens)
    return _recorded(task, standings, rows, replies, subject, "select", tokens)


def _recorded(
    task: Task,
    standings: Sequence[Standing],
    rows: Mapping[str, ResultRow],
    replies: Mapping[str, Sequence[Reply]],
    subject: Subject,
    contents: Literal["report", "select"],
    max_tokens: int,
) -> TaskResults:
    best = {method: each.candidate for method, each in best_of_methods(standings).items()}
    return TaskResults(
        instruction=task.wordings[0].text,
        contents=contents,
        max_tokens=max_tokens,
        rows=dict(rows),
        tried=[_tried(standing) for standing in standings],
        latents=latents_by_method(best, Unembedding(subject.model), subject.tokenizer),
        examples=examples_of(replies),
    )


def _row_on_select(standing: Standing, candidates: int, runtime: str) -> ResultRow:
    row = row_of(standing, standing.outcome, candidates, runtime)
    # A race does not ask which replies are sound where none obeys.
    return row if standing.outcome.strict else msgspec.structs.replace(row, quality=None)


def _tried(standing: Standing) -> TriedCandidate:
    outcome = standing.outcome
    return TriedCandidate(
        method=standing.method,
        parameters=dict(standing.candidate.parameters),
        round=standing.round + 1,
        strict=outcome.strict,
        loose=outcome.loose,
        sound=outcome.sound if outcome.strict else None,
        both=outcome.both,
        n=outcome.n,
    )
