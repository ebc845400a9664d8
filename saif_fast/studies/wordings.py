"""The study of wordings: are an instruction's latents the same in other words and languages?"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from statistics import fmean

from saif_fast.studies.by_wording import Spoken, chosen_wordings, read_wordings, top_of
from saif_fast.studies.context import StudyContext
from saif_fast.studies.protocol import LeftOut
from saif_fast.studies.result import Cell, Matrix, Share, StudyResult, Table, outcome_of


def jaccard(one: Collection[int], other: Collection[int]) -> float:
    """Return the size of the intersection over that of the union; 0 for two empty sets."""
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else 0.0


class Wordings:
    """The overlap of the top-k sets of single wordings, within and across languages."""

    name = "wordings"
    about = "overlap of the top-k latents of single wordings, within and across languages"
    reads_only = True
    claim = (
        "An instruction's latents are the same in other wordings and languages, and differ from "
        "those of other instructions."
    )

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        A wording is *recognised* if the sets of its own instruction in other languages overlap it
        more, on average, than those of every other instruction do. By chance one in as many as
        there are instructions is. The claim holds if the recognised share is surely above chance at
        the highest layer that has an SAE.
        """
        tasks = context.several
        if len(tasks) < 2:
            raise LeftOut(f"it compares instructions, and got {len(tasks)}")
        context.track.say(f"wordings: reading {len(tasks)} instructions, one wording at a time")
        spoken = [
            each
            for task in tasks.values()
            for each in read_wordings(
                context,
                task,
                chosen_wordings(task, context.budget.wordings),
                task.identify[: context.budget.contents],
            )
        ]
        by_name = {task.name: task for task in tasks.values()}
        rows: list[list[Cell]] = []
        recognised: dict[int, Share] = {}
        for i, sae in enumerate(context.subject.saes):
            tops = [top_of(context, by_name[each.task], each, i) for each in spoken]
            kinds = _means(spoken, tops)
            recognised[i] = _recognised(spoken, tops)
            alive = int((context.statistics(next(iter(tasks.values())), i).measured.mean > 0).sum())
            rows.append([sae.layer, *kinds, _by_chance(context.budget.k, alive), recognised[i]])
            if i == context.last:
                labels = [each.label for each in spoken]
                values: list[list[float | None]] = [[jaccard(a, b) for b in tops] for a in tops]
        chance = 1 / len(tasks)
        last = context.last
        share, row = recognised[last], rows[last]
        above = True if share.low > chance else None if share.value > chance else False
        outcome = outcome_of([above])
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=(
                f"{outcome} on this model: at layer {row[0]} the overlap is {row[1]:.2f} within a "
                f"language, {row[2]:.2f} across languages and {row[3]:.2f} with other "
                f"instructions, and {share} wordings are recognised in other languages"
            ),
            table=Table(
                [
                    "layer",
                    "within a language",
                    "across languages",
                    "other instructions",
                    "random sets",
                    "recognised",
                ],
                rows,
            ),
            matrix=Matrix(
                f"Jaccard overlap of the first {context.budget.k} latents, layer {row[0]}",
                labels,
                labels,
                values,
            ),
            settings={**context.fixed, "instructions": ", ".join(tasks)},
        )


def _kind(one: Spoken, other: Spoken) -> int:
    if one.task != other.task:
        return 2
    return 0 if one.wording.language == other.wording.language else 1


def _means(spoken: Sequence[Spoken], tops: Sequence[Sequence[int]]) -> list[float | None]:
    """Return the mean overlap within a language, across languages, and with other instructions."""
    found: tuple[list[float], ...] = ([], [], [])
    for one, other in itertools.combinations(range(len(spoken)), 2):
        found[_kind(spoken[one], spoken[other])].append(jaccard(tops[one], tops[other]))
    return [fmean(each) if each else None for each in found]


def _recognised(spoken: Sequence[Spoken], tops: Sequence[Sequence[int]]) -> Share:
    count = 0
    for one, top in zip(spoken, tops, strict=True):
        overlaps: dict[str, list[float]] = {}
        for other, others in zip(spoken, tops, strict=True):
            if _kind(one, other) > 0:
                overlaps.setdefault(other.task, []).append(jaccard(top, others))
        means = {task: fmean(each) for task, each in overlaps.items()}
        own = means.pop(one.task, 0.0)
        count += own > max(means.values())
    return Share.of(count, len(spoken))


def _by_chance(k: int, alive: int) -> float:
    """Return the Jaccard overlap of two random sets of the expected intersection."""
    shared = k * k / max(alive, 1)
    return shared / (2 * k - shared)
