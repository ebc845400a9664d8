"""The study of specificity: does a set make the model follow its own instruction and no other?"""

from __future__ import annotations

from collections.abc import Sequence

from saif_fast.evaluate.methods import Candidate
from saif_fast.studies.context import Figure, StudyContext
from saif_fast.studies.result import (
    Cell,
    LeftOut,
    Matrix,
    Share,
    StudyResult,
    Table,
    larger,
    outcome_of,
)
from saif_fast.studies.sweeps import NONE_FOLLOWS, unworkable
from saif_fast.tasks import Task
from saif_fast.tasks.scorers import score_all


class Specificity:
    """Replies steered to one instruction, scored by the verifiers of all."""

    name = "specificity"
    about = "replies steered to one instruction, by the verifiers of all; SAIF beside Stolfo's"
    reads_only = False
    claim = "The instruction's latents are distinct: they steer to their own instruction."

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        SAIF stands beside the prompt and the projection (arXiv 2410.12877), whose layer and
        multiple are chosen on the select contents as SAIF's layer and strength are. Nothing is
        among the choices: a method of which no setting follows there is left out. The claim holds
        for an instruction that SAIF makes the model follow surely more often than nothing does,
        while the others are not surely followed more often.
        """
        tasks = context.several
        if len(tasks) < 2:
            raise LeftOut(f"it compares instructions, and got {len(tasks)}")
        tokens = max(context.tokens(task) for task in tasks.values())
        plain = context.measure(next(iter(tasks.values())), {"u": Candidate()}, tokens=tokens)["u"]
        base = [_judged(task, plain) for task in tasks.values()]
        labels, values = ["unsteered"], [[share.value for share in base]]
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for i, (name, task) in enumerate(tasks.items()):
            tried = {
                "SAIF": context.settings(task),
                "projection": context.settings(task, "project"),
            }
            best = {method: settings[0] for method, settings in tried.items()}
            working = {method: s for method, s in best.items() if s.works}
            plan = {"prompted": Candidate(instructed=True)}
            plan |= {method: s.candidate for method, s in working.items()}
            figures = context.measure(task, plan, tokens=tokens)
            for method, figure in figures.items():
                judged = [_judged(other, figure) for other in tasks.values()]
                labels.append(f"{method}: {name}")
                values.append([share.value for share in judged])
                own, rest = judged[i], _pooled(judged, i)
                setting = working.get(method)
                where: list[Cell] = [None, None]
                if setting is not None:
                    where = [setting.layer, setting.strength]
                before: list[Cell] = [base[i], _pooled(base, i)]
                rows.append([name, method, *where, own, before[0], rest, before[1], figure.sound])
                if method == "SAIF":
                    parts.append(_specific(judged, base, i))
                    told.append(
                        f"{name}: own {own} (unsteered {base[i]}), others {rest} "
                        f"(unsteered {_pooled(base, i)})"
                    )
            if "SAIF" not in working:
                parts.append(None)
                told.append(unworkable(name, tried["SAIF"]))
            for method in tried.keys() - working.keys():
                rows.append([name, NONE_FOLLOWS.replace("SAIF", method), *[None] * 7])
        outcome = outcome_of(parts)
        columns = ["own", "own unsteered", "others", "others unsteered", "sound"]
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on this model: {'; '.join(told)}",
            table=Table(["instruction", "what", "layer", "strength", *columns], rows),
            matrix=Matrix(
                "share of replies that the column's verifier passes",
                labels,
                list(tasks),
                [list[float | None](row) for row in values],
            ),
            settings={**context.fixed, "tokens": tokens, "instructions": ", ".join(tasks)},
        )


def _judged(task: Task, figure: Figure) -> Share:
    answers = [(reply.content, reply.text) for reply in figure.replies]
    scores = score_all(task.scorer, answers)
    return Share.of(sum(score.strict for score in scores), len(scores))


def _pooled(shares: Sequence[Share], but: int) -> Share:
    others = [share for i, share in enumerate(shares) if i != but]
    return Share.of(sum(each.count for each in others), sum(each.n for each in others))


def _specific(judged: Sequence[Share], base: Sequence[Share], own: int) -> bool | None:
    """Tell whether the own instruction alone gains; each other one is compared by itself."""
    gains = larger(judged[own], base[own])
    spills = any(
        larger(share, before) is True
        for i, (share, before) in enumerate(zip(judged, base, strict=True))
        if i != own
    )
    return False if spills else gains
