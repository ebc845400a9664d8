"""The study of position: the instruction after the content, or before it."""

from __future__ import annotations

from saif_fast.evaluate.methods import Candidate
from saif_fast.studies.context import StudyContext
from saif_fast.studies.result import Cell, StudyResult, Table, larger, outcome_of
from saif_fast.studies.sweeps import control_row, controls, unworkable
from saif_fast.studies.wordings import jaccard
from saif_fast.tasks import POSITIONS


class InstructionPosition:
    """Latents and obedience where the instruction comes after the content, or before it."""

    name = "position"
    about = "latents and obedience where the instruction follows the content, or precedes it"
    reads_only = False
    claim = "Latents that are read where the instruction follows the content steer better."

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        Each position has its own best setting of the same search. The claim holds for an
        instruction where the set of the later position is followed surely more often; it is unclear
        where neither set is followed at all.
        """
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for name, task in context.tasks.items():
            best = {position: context.settings(task, "saif", position)[0] for position in POSITIONS}
            beside = controls(context, task, best["post"])
            figures = context.measure(
                task, {**beside, **{position: best[position].candidate for position in POSITIONS}}
            )
            before = context.measure(
                task, {"prompted": Candidate(instructed=True)}, position="pre"
            )["prompted"]
            overlap = jaccard(
                context.top(task, best["post"].sae, "post"),
                context.top(task, best["post"].sae, "pre"),
            )
            for what in beside:
                rows.append(_row(control_row(name, what, figures[what])))
            rows.append(_row(control_row(name, "prompted, before the content", before)))
            for position in POSITIONS:
                where = "after" if position == "post" else "before"
                setting, figure = best[position], figures[position]
                shares: list[Cell] = [figure.follow, figure.sound, figure.both]
                what = f"SAIF, read {where} the content"
                rows.append([name, what, setting.layer, setting.strength, *shares, overlap])
            if not any(setting.works for setting in best.values()):
                parts.append(None)
                told.append(unworkable(name, context.settings(task)))
                continue
            post, pre = figures["post"].follow, figures["pre"].follow
            parts.append(larger(post, pre) if post.count or pre.count else None)
            told.append(
                f"{name}: SAIF {post} after and {pre} before the content, prompted "
                f"{figures['prompted'].follow} and {before.follow}, overlap of the latents "
                f"{overlap:.2f} at layer {best['post'].layer}"
            )
        outcome = outcome_of(parts)
        columns = ["instruction", "what", "layer", "strength", "follow", "sound", "both"]
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on this model: {'; '.join(told)}",
            table=Table([*columns, "overlap of both positions"], rows),
            settings=context.fixed,
        )


def _row(control: list[Cell]) -> list[Cell]:
    """Take k and beta out of a control's row, and leave the overlap empty."""
    return [*control[:3], *control[5:], None]
