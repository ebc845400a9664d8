"""Trials: candidates of many methods run in one batch, scored, and the best of each chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from saif_fast.evaluate.intervals import Accuracy
from saif_fast.evaluate.methods import Candidate, Method, check_equal_search
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import GenerationRequest, Runtime
from saif_fast.tasks import Prompter, Score, Task
from saif_fast.tasks.scorers import score_all

# Starts a runtime that can steer with these sets. The caller closes the runtime.
Opener: TypeAlias = Callable[[Mapping[str, LatentSet]], Runtime]


class Choice(NamedTuple):
    """The best candidate of a method, chosen on the select contents."""

    method: str
    candidate: Candidate
    selected: Accuracy
    n_candidates: int


@dataclass(frozen=True)
class Trial:
    """One candidate to be run on contents of one task.

    Attributes:
        label: names its set, so it must be a legal set name.
        task: the task, whose scorer judges the replies.
        candidate: what steers.
        contents: what it is tried on.
        max_tokens: number of generated tokens, at most; None = the task's.
    """

    label: str
    task: Task
    candidate: Candidate
    contents: Sequence[str]
    max_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """Number of generated tokens, at most."""
        return self.max_tokens or self.task.max_tokens


class Reply(NamedTuple):
    """A content, the model's reply to it, the reply's score, and whether it is sound."""

    content: str
    text: str
    score: Score
    sound: bool | None = None  # None = not asked


def run(trials: Sequence[Trial], prompter: Prompter, open_with: Opener) -> list[list[Reply]]:
    """Generate all replies in one call of one runtime, and score them: a list per trial."""
    sets, names = sets_of(trials)
    runtime = open_with(sets)
    try:
        texts = answer(trials, prompter, runtime, names)
    finally:
        runtime.close()
    return [scored(trial, each) for trial, each in zip(trials, texts, strict=True)]


def sets_of(trials: Sequence[Trial]) -> tuple[dict[str, LatentSet], dict[str, str]]:
    """Return the trials' sets by label, equal ones once, and these labels by content hash."""
    sets: dict[str, LatentSet] = {}
    names: dict[str, str] = {}
    for trial in trials:
        latent_set = trial.candidate.latent_set
        if latent_set is not None and latent_set.content_hash not in names:
            names[latent_set.content_hash] = trial.label
            sets[trial.label] = latent_set
    return sets, names


def answer(
    trials: Sequence[Trial], prompter: Prompter, runtime: Runtime, names: Mapping[str, str]
) -> list[list[str]]:
    """Generate all replies in one call of a runtime: a list per trial.

    Args:
        trials: the candidates and their contents.
        prompter: turns a content and an instruction into the model's text.
        runtime: generates; it offers the trials' sets.
        names: names of the trials' sets, by content hash.

    Examples:
        >>> texts = answer(trials, subject.prompter, runtime, names)
        >>> replies = [scored(trial, each) for trial, each in zip(trials, texts)]
    """
    requests = [
        _request(trial, content, prompter, names) for trial in trials for content in trial.contents
    ]
    texts = iter([generation.text for generation in runtime.generate(requests)])
    return [[next(texts) for _ in trial.contents] for trial in trials]


def scored(trial: Trial, texts: Sequence[str]) -> list[Reply]:
    """Score the replies to a trial's contents."""
    answers = list(zip(trial.contents, texts, strict=True))
    scores = score_all(trial.task.scorer, answers)
    return [Reply(c, text, score) for (c, text), score in zip(answers, scores, strict=True)]


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
        max_tokens=trial.tokens,
    )


def select(
    task: Task,
    methods: Sequence[Method],
    contents: Sequence[str],
    prompter: Prompter,
    open_with: Opener,
) -> list[Choice]:
    """Choose the best candidate of each method: most strictly right replies, then most loosely.

    Of candidates that are equal in both, the middle one in the method's own order is taken. A grid
    is ordered by strength, and the middle of a plateau is the safest place on it.

    Args:
        task: the task whose scorer judges the replies.
        methods: the methods, with equally many candidates.
        contents: what the candidates are tried on; use the task's select contents.
        prompter: turns a content and an instruction into the model's text.
        open_with: starts the runtime that generates.

    Returns:
        One choice per method, in the order of ``methods``.

    Raises:
        ValueError: methods with different numbers of candidates.

    Examples:
        >>> grid = saif_grid("saif", statistics, ks=(5, 10, 15), betas=(0.0, 1.0))
        >>> (choice,) = select(task, [grid], task.select, subject.prompter, subject.open)
        >>> choice.candidate.latent_set.save("sets/own.safetensors")
    """
    check_equal_search(methods)
    trials = [
        Trial(f"{method.name}.{i}", task, candidate, contents)
        for method in methods
        for i, candidate in enumerate(method.candidates)
    ]
    scored = (
        Accuracy.from_scores(reply.score for reply in replies)
        for replies in run(trials, prompter, open_with)
    )
    choices = []
    for method in methods:
        counted = [next(scored) for _ in method.candidates]
        best = max(counted)
        tied = [i for i, accuracy in enumerate(counted) if accuracy == best]
        chosen = tied[(len(tied) - 1) // 2]
        choices.append(
            Choice(method.name, method.candidates[chosen], counted[chosen], len(method.candidates))
        )
    return choices
