"""Run candidates of many methods in one batch, score the replies, choose each method's best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from saif_fast.evaluate.intervals import Tally
from saif_fast.evaluate.methods import Candidate, Method, check_equal_search
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import GenerationRequest, Runtime
from saif_fast.tasks import Score, Task

# A content and, where the prompt is to contain one, an instruction, to the text the model reads.
Prompter: TypeAlias = Callable[[str, str | None], str]
# Starts a runtime that can steer with these sets; whoever calls it closes the runtime.
Opener: TypeAlias = Callable[[Mapping[str, LatentSet]], Runtime]


class Choice(NamedTuple):
    """The candidate of a method that was best on the select contents."""

    method: str
    candidate: Candidate
    selected: Tally
    n_candidates: int


@dataclass(frozen=True)
class Trial:
    """One candidate on contents of one task. The label names its set, so it is a legal set name."""

    label: str
    task: Task
    candidate: Candidate
    contents: Sequence[str]


class Reply(NamedTuple):
    """A content, what the model answered, and how it was scored."""

    content: str
    text: str
    score: Score


def run(trials: Sequence[Trial], prompter: Prompter, open_with: Opener) -> list[list[Reply]]:
    """Generate everything in one call of one runtime, and score it; one list of replies a trial."""
    names: dict[str, str] = {}  # content hash -> name; equal sets are loaded once
    sets: dict[str, LatentSet] = {}
    for trial in trials:
        latent_set = trial.candidate.latent_set
        if latent_set is not None and latent_set.content_hash not in names:
            names[latent_set.content_hash] = trial.label
            sets[trial.label] = latent_set
    requests = [
        _request(trial, content, prompter, names) for trial in trials for content in trial.contents
    ]
    runtime = open_with(sets)
    try:
        texts = iter([generation.text for generation in runtime.generate(requests)])
    finally:
        runtime.close()
    replies = []
    for trial in trials:
        answered = [(content, next(texts)) for content in trial.contents]
        replies.append([Reply(c, text, trial.task.scorer(c, text)) for c, text in answered])
    return replies


def _request(
    trial: Trial, content: str, prompter: Prompter, names: Mapping[str, str]
) -> GenerationRequest:
    candidate = trial.candidate
    saif = None
    if candidate.latent_set is not None:
        saif = f"{names[candidate.latent_set.content_hash]}*{candidate.strength!r}"
    instruction = trial.task.wordings[0].text if candidate.instructed else None
    return GenerationRequest(
        prompt=prompter(content, instruction),
        saif=saif,
        options=dict(candidate.options),
        logit_bias=None if candidate.logit_bias is None else dict(candidate.logit_bias),
        max_tokens=trial.task.max_tokens,
    )


def select(
    task: Task,
    methods: Sequence[Method],
    contents: Sequence[str],
    prompter: Prompter,
    open_with: Opener,
) -> list[Choice]:
    """The best candidate of each method on ``contents``: most strict, then most loose replies.

    Of candidates that are equal in both, the middle one in the method's own order is taken: a grid
    is ordered by strength, and the middle of a plateau is the safest place on it.

    Raises:
        ValueError: methods with a different number of candidates.
    """
    check_equal_search(methods)
    trials = [
        Trial(f"{method.name}.{i}", task, candidate, contents)
        for method in methods
        for i, candidate in enumerate(method.candidates)
    ]
    tallies = iter(
        [Tally.of(r.score for r in replies) for replies in run(trials, prompter, open_with)]
    )
    choices = []
    for method in methods:
        counted = [next(tallies) for _ in method.candidates]
        best = max(counted)
        tied = [i for i, tally in enumerate(counted) if tally == best]
        chosen = tied[(len(tied) - 1) // 2]
        choices.append(
            Choice(method.name, method.candidates[chosen], counted[chosen], len(method.candidates))
        )
    return choices
