"""The study of signatures: can a prompt's instruction be told by its latents?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saif_fast.studies.by_wording import Spoken, chosen_wordings, encoded, read_wordings
from saif_fast.studies.context import StudyContext
from saif_fast.studies.result import (
    Cell,
    LeftOut,
    Matrix,
    Share,
    StudyResult,
    Table,
    both_hold,
    larger,
    outcome_of,
)

_EPSILON = 1e-6


class Signatures:
    """The instruction of a prompt by the nearest mean of its latents."""

    name = "signatures"
    about = "the instruction of a held-out prompt, told by its latents"
    reads_only = True
    claim = "Each instruction has a distinct set of latents, by which it can be told."

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        A signature is the mean over prompts of an instruction of the latents that are among the
        first k of any instruction, each divided by its standard deviation. A prompt has the
        instruction of the nearest signature, by the cosine after the mean of all is taken out.
        Signatures come from identify contents and some wordings, the prompts from select contents,
        with the same wordings or others. Controls are random active latents, as many, and the
        residual stream itself. The claim holds if for unseen wordings the accuracy at the highest
        layer that has an SAE is surely above chance and above that of random latents.
        """
        tasks = context.several
        if len(tasks) < 2:
            raise LeftOut(f"it compares instructions, and got {len(tasks)}")
        n = context.budget.wordings
        context.track.say(f"signatures: reading prompts of {len(tasks)} instructions")
        found: dict[str, list[Spoken]] = {"train": [], "seen": [], "unseen": []}
        for task in tasks.values():
            seen, unseen = chosen_wordings(task, n), chosen_wordings(task, n, skip=n)
            contents = task.select[: context.budget.select]
            first = task.identify[: context.budget.contents]
            found["train"] += read_wordings(context, task, seen, first)
            found["seen"] += read_wordings(context, task, seen, contents)
            if unseen:
                found["unseen"] += read_wordings(context, task, unseen, contents)
        if not found["unseen"]:
            raise LeftOut(f"it needs more than {n} wordings of a language, and got fewer")
        names = [task.name for task in tasks.values()]
        labels = {kind: _labels(spoken, names) for kind, spoken in found.items()}
        rows: list[list[Cell]] = []
        for i, sae in enumerate(context.subject.saes):
            latents = {kind: encoded(context, spoken, i) for kind, spoken in found.items()}
            chosen = sorted({each for task in tasks.values() for each in context.top(task, i)})
            random = _random(latents["train"], chosen, context.budget.seed)
            residuals = {
                kind: torch.cat([each.activations.positive[sae.layer] for each in spoken])
                for kind, spoken in found.items()
            }
            guessed = {
                "own": {
                    k: _told(latents["train"], labels["train"], x, chosen)
                    for k, x in latents.items()
                },
                "random": {
                    k: _told(latents["train"], labels["train"], x, random)
                    for k, x in latents.items()
                },
                "residual": {
                    k: _told(residuals["train"], labels["train"], x) for k, x in residuals.items()
                },
            }
            right = {
                (what, kind): _accuracy(guess, labels[kind])
                for what, by_kind in guessed.items()
                for kind, guess in by_kind.items()
            }
            rows.append(
                [
                    sae.layer,
                    len(chosen),
                    right["own", "seen"],
                    right["own", "unseen"],
                    right["random", "unseen"],
                    right["residual", "unseen"],
                ]
            )
            if i == context.last:
                share, control = right["own", "unseen"], right["random", "unseen"]
                confused = _confusion(guessed["own"]["unseen"], labels["unseen"], len(names))
        chance = 1 / len(names)
        above = True if share.low > chance else None if share.value > chance else False
        outcome = outcome_of([both_hold(above, larger(share, control))])
        layer = context.subject.saes[context.last].layer
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=(
                f"{outcome} on this model: at layer {layer} the latents tell {share} prompts of "
                f"unseen wordings, random latents {control}, chance is 1 in {len(names)}"
            ),
            table=Table(
                [
                    "layer",
                    "latents",
                    "seen wordings",
                    "unseen wordings",
                    "unseen, random latents",
                    "unseen, residual stream",
                ],
                rows,
            ),
            matrix=Matrix(
                f"share of prompts of the row told as the column, unseen wordings, layer {layer}",
                list(tasks),
                list(tasks),
                confused,
            ),
            settings={**context.fixed, "instructions": ", ".join(tasks)},
        )


def _labels(spoken: Sequence[Spoken], names: Sequence[str]) -> Tensor:
    """Return the index of each prompt's instruction: [prompts] int64."""
    found = [
        names.index(each.task)
        for each in spoken
        for _ in next(iter(each.activations.positive.values()))
    ]
    return torch.tensor(found)


def _random(train: Tensor, chosen: Sequence[int], seed: int) -> list[int]:
    active = (train > 0).any(0)
    active[list(chosen)] = False
    pool = active.nonzero().squeeze(1)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    drawn: list[int] = pool[order[: len(chosen)]].tolist()
    return drawn


def _told(
    train: Tensor, labels: Tensor, asked: Tensor, columns: Sequence[int] | None = None
) -> Tensor:
    """Return the nearest class of each row of ``asked`` [n, features]: [n] int64."""
    if columns is not None:
        train, asked = train[:, columns], asked[:, columns]
    mean, std = train.mean(0), train.std(0) + _EPSILON
    kept = std > 10 * _EPSILON  # what is the same in all of train says nothing
    train, asked = ((x - mean)[:, kept] / std[kept] for x in (train, asked))
    centroids = torch.stack([train[labels == i].mean(0) for i in range(int(labels.max()) + 1)])
    nearest: Tensor = (
        torch.nn.functional.normalize(asked, dim=1)
        @ torch.nn.functional.normalize(centroids, dim=1).T
    ).argmax(1)
    return nearest


def _accuracy(guessed: Tensor, labels: Tensor) -> Share:
    return Share.of(int((guessed == labels).sum()), len(labels))


def _confusion(guessed: Tensor, labels: Tensor, n: int) -> list[list[float | None]]:
    return [
        [float((guessed[labels == own] == other).float().mean()) for other in range(n)]
        for own in range(n)
    ]
