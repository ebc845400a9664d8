"""Sweeps of SAIF's set over k, beta and the layer, all else fixed, with controls in each table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from saif_fast.evaluate.methods import Candidate
from saif_fast.studies.context import Figure, Setting, StudyContext
from saif_fast.studies.result import (
    Cell,
    LeftOut,
    StudyResult,
    Table,
    larger,
    outcome_of,
    said,
)
from saif_fast.tasks import Task

KS = (1, 3, 5, 10, 15, 30, 60)
BETAS = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
NONE_FOLLOWS = "SAIF: no setting follows"  # so there is nothing to vary
COLUMNS = ["instruction", "what", "layer", "k", "beta", "strength", "follow", "sound", "both"]


def controls(context: StudyContext, task: Task, setting: Setting) -> dict[str, list[Candidate]]:
    """Return the candidates that stand beside every figure: nothing, the prompt, random latents."""
    return {
        "unsteered": [Candidate()],
        "prompted": [Candidate(instructed=True)],
        f"random latents, {context.budget.draws} draws": context.random(task, setting),
    }


def control_row(name: str, what: str, figure: Figure) -> list[Cell]:
    """Make the row of a control in a table of :data:`COLUMNS`."""
    return [name, what, None, None, None, None, figure.follow, figure.sound, figure.both]


def unworkable(name: str, settings: Sequence[Setting]) -> str:
    """Say that no setting makes the model follow."""
    return f"{name}: none of {len(settings)} settings follows on the select contents"


class _Sweep:
    """A sweep of one number of SAIF's set, at the layer and strength that the context chose."""

    name: ClassVar[str]
    claim: ClassVar[str]
    values: ClassVar[Sequence[float]]
    reads_only = False

    def run(self, context: StudyContext) -> StudyResult:
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for name, task in context.tasks.items():
            settings = context.settings(task)
            best = settings[0]
            if not best.works:
                rows.append([name, NONE_FOLLOWS, *[None] * (len(COLUMNS) - 2)])
                parts.append(None)
                told.append(unworkable(name, settings))
                continue
            swept = {
                value: self._candidate(context, task, best, value)
                for value in self._values(context, task, best)
            }
            beside = controls(context, task, best)
            figures = context.measure(
                task, {**beside, **{f"{value:g}": each for value, each in swept.items()}}
            )
            rows += [control_row(name, what, figures[what]) for what in beside]
            found = {value: figures[f"{value:g}"] for value in swept}
            for value, figure in found.items():
                row = self._row(context, best, value)
                rows.append([name, "SAIF", *row, figure.follow, figure.sound, figure.both])
            claims = self._parts(found, figures["unsteered"])
            parts += claims.values()
            shown = ", ".join(f"{v:g}: {f.follow}" for v, f in found.items())
            answers = ", ".join(f"{what}: {said(part)}" for what, part in claims.items())
            told.append(f"{name}: {answers} (follow at {self.name} {shown})")
        outcome = outcome_of(parts)
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on this model: {'; '.join(told)}",
            table=Table(COLUMNS, rows),
            settings=context.fixed,
        )

    def _values(self, context: StudyContext, task: Task, setting: Setting) -> list[float]:
        return list(self.values)

    def _candidate(
        self, context: StudyContext, task: Task, setting: Setting, value: float
    ) -> Candidate:
        raise NotImplementedError

    def _row(self, context: StudyContext, setting: Setting, value: float) -> list[Cell]:
        raise NotImplementedError

    def _parts(self, found: Mapping[float, Figure], unsteered: Figure) -> dict[str, bool | None]:
        raise NotImplementedError


class NumberOfLatents(_Sweep):
    """SAIF's set over its number of latents."""

    name = "k"
    about = "obedience and quality over the number of latents"
    claim = "One latent is not enough to make a model follow, and too many hurt."
    values = KS

    def _values(self, context: StudyContext, task: Task, setting: Setting) -> list[float]:
        # Beyond the latents that rise, larger k are all the same set.
        rising = len(context.statistics(task, setting.sae).ranking())
        return [k for k in KS if k <= rising]

    def _candidate(
        self, context: StudyContext, task: Task, setting: Setting, value: float
    ) -> Candidate:
        return context.steered(task, setting.sae, k=int(value), strength=setting.strength)

    def _row(self, context: StudyContext, setting: Setting, value: float) -> list[Cell]:
        return [setting.layer, int(value), 0.0, setting.strength]

    def _parts(self, found: Mapping[float, Figure], unsteered: Figure) -> dict[str, bool | None]:
        """Whether the best k surely beats one latent, and the largest k costs text or obedience.

        Both are unclear where no k is followed surely more often than nothing.
        """
        parts: dict[str, bool | None] = {"several are needed": None, "too many hurt": None}
        if _works(found, unsteered):
            best = max(found, key=lambda k: found[k].outcome.score)
            several = False if best == 1 else larger(found[best].follow, found[1].follow)
            parts = {"several are needed": several, "too many hurt": _hurts(found, best)}
        return parts


class Beta(_Sweep):
    """SAIF's set over beta: each latent is added at mu + beta * sigma."""

    name = "beta"
    about = "obedience and quality over beta, where each latent is added at mu + beta * sigma"
    claim = "Obedience rises with beta up to a point, beyond which the text suffers."
    values = BETAS

    def _candidate(
        self, context: StudyContext, task: Task, setting: Setting, value: float
    ) -> Candidate:
        return context.steered(task, setting.sae, beta=value, strength=setting.strength)

    def _row(self, context: StudyContext, setting: Setting, value: float) -> list[Cell]:
        return [setting.layer, context.budget.k, value, setting.strength]

    def _parts(self, found: Mapping[float, Figure], unsteered: Figure) -> dict[str, bool | None]:
        """Whether some beta surely beats the smallest one, and the largest one hurts.

        Both are unclear where no beta is followed surely more often than nothing.
        """
        parts: dict[str, bool | None] = {"obedience rises": None, "the largest hurts": None}
        if _works(found, unsteered):
            best = max(found, key=lambda beta: found[beta].outcome.score)
            peak = max(found, key=lambda beta: found[beta].outcome.strict)
            rises = larger(found[peak].follow, found[min(found)].follow)
            parts = {"obedience rises": rises, "the largest hurts": _hurts(found, best)}
        return parts


def _works(found: Mapping[float, Figure], unsteered: Figure) -> bool:
    """Tell whether any value is followed surely more often than nothing."""
    return any(larger(figure.follow, unsteered.follow) for figure in found.values())


def _hurts(found: Mapping[float, Figure], best: float) -> bool | None:
    """Tell whether the largest value has surely fewer replies that follow, or sound ones."""
    most = max(found)
    if best == most:
        return False
    fewer = [
        larger(found[best].follow, found[most].follow),
        larger(found[best].sound, found[most].sound),
    ]
    if True in fewer:
        return True
    return None if None in fewer else False


class Layers:
    """SAIF's set at each SAE's layer, as published and at the strength that suits the layer."""

    name = "layer"
    about = "obedience and quality over the layers that have an SAE"
    reads_only = False
    claim = "Steering at the last layer works best."

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        The claim holds for an instruction where the last layer's set has a higher score than the
        best other one's, and is surely followed or sound more often. It does not where another
        layer has a higher score, and is unclear where no layer's set is followed at all.
        """
        saes, last = context.subject.saes, context.subject.saes[context.last].layer
        if len(saes) < 2:
            raise LeftOut(f"it needs SAEs of several layers, and got one, of layer {last}")
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for name, task in context.tasks.items():
            settings = context.settings(task)
            if not settings[0].works:
                rows.append([name, NONE_FOLLOWS, *[None] * (len(COLUMNS) - 2)])
                parts.append(None)
                told.append(unworkable(name, settings))
                continue
            beside = controls(context, task, settings[0])
            # Sorted, so that the first of each SAE is its best.
            suited: dict[int, Setting] = {}
            for setting in reversed(settings):
                suited[setting.sae] = setting
            published = {s.sae: s for s in settings if s.strength == 1.0}
            tried = {("as published", i): s for i, s in published.items()}
            tried |= {("best strength", i): s for i, s in suited.items()}
            figures = context.measure(
                task, {**beside, **{f"{key}": s.candidate for key, s in tried.items()}}
            )
            rows += [control_row(name, what, figures[what]) for what in beside]
            order = sorted(tried, key=lambda key: (key[0], tried[key].layer))
            for key in order:
                setting, figure = tried[key], figures[f"{key}"]
                fixed: list[Cell] = [setting.layer, context.budget.k, 0.0, setting.strength]
                rows.append(
                    [name, f"SAIF, {key[0]}", *fixed, figure.follow, figure.sound, figure.both]
                )
            at = {tried[key].layer: figures[f"{key}"] for key in order if key[0] != "as published"}
            own = at.pop(last, None)
            if own is None or not at:
                parts.append(None if own is not None else False)
                told.append(f"{name}: latents rise at one layer only, or not at layer {last}")
                continue
            best = max(at, key=lambda layer: (at[layer].outcome.score, at[layer].outcome.strict))
            parts.append(ahead(own, at[best]))
            told.append(
                f"{name}: layer {last} {own.follow} follow and {own.sound} are sound, "
                f"layer {best} {at[best].follow} and {at[best].sound}"
            )
        outcome = outcome_of(parts)
        depth = context.subject.info.num_layers
        short = "" if last == depth - 1 else f"; layer {last} is not the last of {depth}"
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on this model: {'; '.join(told)}{short}",
            table=Table(COLUMNS, rows),
            settings=context.fixed,
        )


def ahead(own: Figure, other: Figure) -> bool | None:
    """Tell whether one layer is better: by score, and surely if in obedience or in soundness."""
    if not own.outcome.strict and not other.outcome.strict:
        return None
    if own.outcome.score <= other.outcome.score:
        return False
    sure = larger(own.follow, other.follow) or larger(own.sound, other.sound)
    return True if sure else None
