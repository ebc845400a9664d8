"""The study of wordings: are an instruction's latents the same in other words and languages?"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from statistics import fmean

from saif_fast.studies.by_wording import Spoken, chosen_wordings, read_wordings, top_of
from saif_fast.studies.context import StudyContext
from saif_fast.studies.result import Cell, LeftOut, Matrix, Share, StudyResult, Table, outcome_of


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

        A wording is *recognised* if, of the wordings in other languages, those of its own
        instruction overlap it more, on average, than those of every other instruction do. By chance
        one in as many as there are instructions is. The claim holds if the interval of the
        recognised share is above chance at the highest layer that has an SAE. Other instructions in
        the same language are a control: where they overlap a wording more than its translations
        do, the latents tell the language and not the instruction.
        """
        tasks = context.several
        if len(tasks) < 2:
            raise LeftOut(f"it compares instructions, and got {len(tasks)}")
        if all(len({w.language for w in task.wordings}) < 2 for task in tasks.values()):
            raise LeftOut("it compares languages, and got wordings of one")
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
                f"{outcome} on this model: at layer {row[0]} the overlap with the same "
                f"instruction is {_shown(row[1])} in the same language and {_shown(row[2])} in "
                f"another one, with other instructions {_shown(row[3])} and {_shown(row[4])}, and "
                f"{share} wordings are recognised in other languages"
            ),
            table=Table(
                [
                    "layer",
                    "same instruction, same language",
                    "same instruction, other language",
                    "other instruction, same language",
                    "other instruction, other language",
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


def _shown(overlap: Cell) -> str:
    return f"{overlap:.2f}" if isinstance(overlap, float) else "unknown"


def _means(spoken: Sequence[Spoken], tops: Sequence[Sequence[int]]) -> list[Cell]:
    """Return the mean overlap with the same and with other instructions.

    Each is first of the same language and then of other languages.
    """
    found: tuple[list[float], ...] = ([], [], [], [])
    for i, j in itertools.combinations(range(len(spoken)), 2):
        one, other = spoken[i], spoken[j]
        abroad = one.wording.language != other.wording.language
        found[2 * (one.task != other.task) + abroad].append(jaccard(tops[i], tops[j]))
    return [fmean(each) if each else None for each in found]


def _recognised(spoken: Sequence[Spoken], tops: Sequence[Sequence[int]]) -> Share:
    count = n = 0
    for one, top in zip(spoken, tops, strict=True):
        overlaps: dict[str, list[float]] = {}
        for other, others in zip(spoken, tops, strict=True):
            if one.wording.language != other.wording.language:
                overlaps.setdefault(other.task, []).append(jaccard(top, others))
        means = {task: fmean(each) for task, each in overlaps.items()}
        if one.task in means:  # otherwise it has one language
            own = means.pop(one.task)
            n += 1
            count += own > max(means.values(), default=0.0)
    return Share.of(count, n)


def _by_chance(k: int, alive: int) -> float:
    """Return the Jaccard overlap of two random sets of the expected intersection."""
    k = max(1, min(k, alive))
    shared = k * k / max(alive, 1)
    return shared / (2 * k - shared)
