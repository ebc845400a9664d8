"""Activations of one wording at a time, which studies of wordings and of signatures share."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from saif_fast.identify import (
    ActivationSet,
    ContrastPairs,
    LatentStatistics,
    build_pairs,
    collect,
)
from saif_fast.studies.context import StudyContext
from saif_fast.tasks import Task, Wording


class Spoken(NamedTuple):
    """A wording of a task, and the activations of its pairs."""

    task: str
    wording: Wording
    label: str
    activations: ActivationSet


def chosen_wordings(task: Task, n: int, *, skip: int = 0) -> list[Wording]:
    """Return ``n`` wordings of each language, or fewer, after the first ``skip`` of each.

    Examples:
        >>> [wording.language for wording in chosen_wordings(get_task("french"), 2)]
        ['en', 'en', 'fr', 'fr', 'de', 'de']
    """
    languages = dict.fromkeys(wording.language for wording in task.wordings)
    return [
        wording
        for language in languages
        for wording in [w for w in task.wordings if w.language == language][skip : skip + n]
    ]


def read_wordings(
    context: StudyContext,
    task: Task,
    wordings: Sequence[Wording],
    contents: Sequence[str],
) -> list[Spoken]:
    """Read each wording with the same contents, at every SAE's layer.

    The negatives are of three kinds in turn, as in :func:`saif_fast.identify.build_pairs`.

    Args:
        context: the model.
        task: the task, whose neutral sentences and other instructions are for negatives.
        wordings: some of its wordings.
        contents: contents; identify contents, to find latents.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each is one wording on purpose
        built = [
            build_pairs(
                contents,
                [wording.text],
                neutral=task.neutral,
                others=task.others,
                max_pairs=None,
                seed=context.budget.seed,
            )
            for wording in wordings
        ]
        pairs = ContrastPairs(
            tuple(itertools.chain.from_iterable(each.pairs for each in built)),
            tuple(wording.text for wording in wordings),
            position="post",
            seed=context.budget.seed,
            negatives=built[0].negatives,
        )
    layers = sorted({sae.layer for sae in context.subject.saes})
    subject = context.subject
    read = collect(context.source, subject.tokenizer, pairs, layers, chat=subject.chat)
    spoken = []
    numbers: dict[str, int] = {}
    for i, wording in enumerate(wordings):
        numbers[wording.language] = number = numbers.get(wording.language, 0) + 1
        rows = slice(i * len(contents), (i + 1) * len(contents))
        part = replace(
            read,
            positive={layer: read.positive[layer][rows] for layer in layers},
            negative={layer: read.negative[layer][rows] for layer in layers},
        )
        label = f"{task.name} {wording.language} {number}"
        spoken.append(Spoken(task.name, wording, label, part))
    return spoken


def top_of(context: StudyContext, task: Task, spoken: Spoken, sae: int) -> list[int]:
    """Return SAIF's first k latents for one wording.

    Dense latents are those of the task's own statistics, since plain text is the same.
    """
    whole = context.statistics(task, sae)
    activations = spoken.activations
    layer = context.subject.saes[sae].layer
    one_token = {layer: activations.plain[layer][:1]}  # encoding all of it again would take long
    statistics = LatentStatistics.compute(
        whole.sae,
        replace(activations, plain=one_token),
        max_density=1.0,
        allow_mismatch=context.subject.allow_mismatch,
    )
    density = whole.measured.density
    sparse = (i for i in statistics.ranking() if density[i] <= whole.max_density)
    return list(itertools.islice(sparse, context.budget.k))


def encoded(context: StudyContext, spoken: Sequence[Spoken], sae: int) -> Tensor:
    """Return the latents' activations [prompts, d_sae] with the instruction."""
    source = context.subject.saes[sae]
    rows = torch.cat([each.activations.positive[source.layer] for each in spoken])
    return source.encode(rows.to(source.W_enc.device)).cpu()
