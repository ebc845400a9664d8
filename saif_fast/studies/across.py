"""Studies across models: does SAIF hold at every size, and are a base model's latents the same?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from saif_fast.studies.models import ModelFigures, TaskFigures
from saif_fast.studies.result import Cell, LeftOut, StudyResult, Table, larger, outcome_of
from saif_fast.studies.wordings import jaccard

_LEAST = 0.3  # strict accuracy that the paper reports across tasks
_COLUMNS = [
    "model",
    "parameters",
    "layers",
    "instruction",
    "layer",
    "strength",
    "unsteered",
    "prompted",
    "random latents",
    "SAIF",
    "SAIF sound",
    "SAIF both",
]


class Sizes:
    """SAIF on every model that is named, a row per model and instruction."""

    name = "sizes"
    about = "obedience by SAIF on every model that is named"
    claim = "SAIF holds across models of different sizes, with over 30 % strict accuracy."

    def conclude(self, models: Sequence[ModelFigures]) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.AcrossModels`.

        The claim holds for a model and an instruction where SAIF is followed surely more often than
        nothing and than random latents, and in 30 % of the replies or more.
        """
        parts: list[bool | None] = []
        rows, told = [], []
        for model in models:
            if model.trouble:
                parts.append(None)
                told.append(f"{model.name}: not measured, {model.trouble}")
            for name, figures in model.tasks.items():
                rows.append(_row(model, name, figures))
                parts.append(_holds(figures))
                told.append(f"{model.name}, {name}: SAIF {figures.saif.follow}")
        alone = "; one model says nothing of sizes" if len(models) == 1 else ""
        outcome = "undecided" if len(models) == 1 else outcome_of(parts)
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome}: {'; '.join(told)}{alone}",
            table=Table(_COLUMNS, rows),
            settings=dict(models[0].fixed),
        )


def _row(model: ModelFigures, name: str, figures: TaskFigures) -> list[Cell]:
    return [
        model.name,
        model.parameters,
        model.info.num_layers,
        name,
        figures.setting.layer,
        figures.setting.strength,
        figures.unsteered.follow,
        figures.prompted.follow,
        figures.random.follow,
        figures.saif.follow,
        figures.saif.sound,
        figures.saif.both,
    ]


def _holds(figures: TaskFigures) -> bool | None:
    saif = figures.saif.follow
    against = [larger(saif, figures.unsteered.follow), larger(saif, figures.random.follow)]
    if False in against:
        return False
    if None in against or saif.low <= _LEAST <= saif.high:
        return None
    return saif.value >= _LEAST


class BaseInstruct:
    """A base model beside its instruct model, through the same SAEs."""

    name = "base_instruct"
    about = "a base model beside its instruct model, through the same SAEs"
    claim = (
        "An instruction's latents in an instruct model are those of its base model. "
        "(Our question: the abstract says nothing of it.)"
    )

    def conclude(self, models: Sequence[ModelFigures]) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.AcrossModels`.

        Two models are compared if they have the same shape and an SAE in common. The claim holds
        for an instruction where the two sets of k latents share more than half of their union's
        latents at the highest common layer.
        """
        pairs = [
            (one, other)
            for one, other in itertools.combinations(models, 2)
            if _shape(one) == _shape(other) and one.layers.keys() & other.layers.keys()
        ]
        if not pairs:
            raise LeftOut(
                "no two of the models have the same shape and an SAE in common; name both with "
                "--model, and give --allow-mismatch"
            )
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for one, other in pairs:
            common = sorted(one.layers.keys() & other.layers.keys(), key=one.layers.__getitem__)
            for name in _shared(one, other):
                for sae in common:
                    tops = [model.tops[name, sae] for model in (one, other)]
                    overlap = jaccard(*tops)
                    rows.append(
                        [
                            one.name,
                            other.name,
                            name,
                            one.layers[sae],
                            overlap,
                            *_two(one.tasks.get(name), other.tasks.get(name)),
                        ]
                    )
                told.append(f"{name}: overlap {overlap:.2f} at layer {one.layers[sae]}")
                parts.append(overlap > 0.5)
        outcome = outcome_of(parts)
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on these models: {'; '.join(told)}",
            table=Table(
                [
                    "model",
                    "other",
                    "instruction",
                    "layer",
                    "Jaccard",
                    "prompted",
                    "other prompted",
                    "SAIF",
                    "other SAIF",
                ],
                rows,
            ),
            settings=dict(models[0].fixed),
        )


def _shape(model: ModelFigures) -> tuple[int, int]:
    return model.info.d_model, model.info.num_layers


def _shared(one: ModelFigures, other: ModelFigures) -> list[str]:
    """Return the instructions whose latents are known of both models."""
    names = dict.fromkeys(name for name, _ in one.tops)
    return [name for name in names if any(name == each for each, _ in other.tops)]


def _two(one: TaskFigures | None, other: TaskFigures | None) -> list[Cell]:
    return [
        None if figures is None else getattr(figures, what).follow
        for what in ("prompted", "saif")
        for figures in (one, other)
    ]
