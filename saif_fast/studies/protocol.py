"""The protocol of studies: a name, the paper's claim, and what is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from saif_fast.studies.context import StudyContext
from saif_fast.studies.models import ModelFigures
from saif_fast.studies.result import StudyResult


@runtime_checkable
class OneModel(Protocol):
    """A study of one model.

    Attributes:
        name: its name, for the command.
        about: what it measures, in a few words.
        claim: what the paper says, in one sentence.
        reads_only: whether it generates nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def claim(self) -> str: ...

    @property
    def reads_only(self) -> bool: ...

    def run(self, context: StudyContext) -> StudyResult:
        """Measure, and judge the claim.

        Raises:
            LeftOut: there is nothing to measure, such as layers where there is one SAE.
        """


@runtime_checkable
class AcrossModels(Protocol):
    """A study of several models; see :class:`OneModel` for the attributes."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def claim(self) -> str: ...

    def conclude(self, models: Sequence[ModelFigures]) -> StudyResult:
        """Judge the claim by the figures of each model.

        Raises:
            LeftOut: the models are not those that the study compares.
        """


Study: TypeAlias = OneModel | AcrossModels
