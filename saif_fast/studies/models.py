"""The figures of one model that studies across models compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saif_fast.evaluate.methods import Candidate
from saif_fast.model_info import ModelInfo
from saif_fast.quality import NoYardstick
from saif_fast.studies.context import Figure, Setting, StudyContext
from saif_fast.studies.result import LeftOut
from saif_fast.tasks import Task


@dataclass(frozen=True)
class TaskFigures:
    """One model's figures for one instruction: unsteered, asked, and steered by SAIF."""

    unsteered: Figure
    prompted: Figure
    random: Figure
    saif: Figure
    setting: Setting


@dataclass(frozen=True)
class ModelFigures:
    """What studies across models compare.

    Attributes:
        name: what ``--model`` names.
        info: the model's shape.
        parameters: number of its parameters.
        templated: whether prompts go through a chat template.
        tasks: figures by instruction; none where the model's own replies cannot be judged.
        tops: SAIF's first k latents by instruction and the content hash of the SAE.
        layers: layer of each SAE by its content hash.
        fixed: seeds and budgets.
        trouble: why there are no figures; "" = there are.
    """

    name: str
    info: ModelInfo
    parameters: int
    templated: bool
    tasks: Mapping[str, TaskFigures]
    tops: Mapping[tuple[str, str], list[int]]
    layers: Mapping[str, int]
    fixed: Mapping[str, str | int | float]
    trouble: str = ""


def figures_of(context: StudyContext) -> ModelFigures:
    """Measure what studies across models compare; most is known from a model's other studies.

    Examples:
        >>> str(figures_of(context).tasks["french"].saif.follow)
        '9/24'
    """
    saes = context.subject.saes
    tops = {
        (name, sae.content_hash): context.top(task, i)
        for name, task in context.tasks.items()
        for i, sae in enumerate(saes)
    }
    tasks, trouble = {}, ""
    try:
        for name, task in context.tasks.items():
            tasks[name] = _measured(context, task)
    except (LeftOut, NoYardstick) as reason:
        tasks, trouble = {}, str(reason)
    return ModelFigures(
        name=context.model,
        info=context.subject.info,
        parameters=sum(each.numel() for each in context.subject.model.parameters()),
        templated=context.subject.templated,
        tasks=tasks,
        tops=tops,
        layers={sae.content_hash: sae.layer for sae in saes},
        fixed=context.fixed,
        trouble=trouble,
    )


def _measured(context: StudyContext, task: Task) -> TaskFigures:
    context.soundness(task).yardstick(context.tokens(task))  # before anything that takes long
    setting = context.settings(task)[0]
    figures = context.measure(
        task,
        {
            "unsteered": Candidate(),
            "prompted": Candidate(instructed=True),
            "random": context.random(task, setting),
            "saif": setting.candidate,
        },
    )
    return TaskFigures(**figures, setting=setting)
