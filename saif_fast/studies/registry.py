"""The registry of studies: to add one, a class of the protocol and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from saif_fast.studies.across import BaseInstruct, Sizes
from saif_fast.studies.causal import Causal
from saif_fast.studies.position import InstructionPosition
from saif_fast.studies.protocol import Study
from saif_fast.studies.proximity import Proximity
from saif_fast.studies.signatures import Signatures
from saif_fast.studies.specificity import Specificity
from saif_fast.studies.sweeps import Beta, Layers, NumberOfLatents
from saif_fast.studies.wordings import Wordings

ALL = "all"

# In the order in which they are run and shown: what only reads comes first.
_IN_ORDER: tuple[Study, ...] = (
    Wordings(),
    Signatures(),
    Proximity(),
    Layers(),
    NumberOfLatents(),
    Beta(),
    InstructionPosition(),
    Causal(),
    Specificity(),
    Sizes(),
    BaseInstruct(),
)
STUDIES: Mapping[str, Study] = {study.name: study for study in _IN_ORDER}


def chosen(name: str) -> list[Study]:
    """Return the study of a name, or every study for ``all``.

    Raises:
        ValueError: there is no such study.

    Examples:
        >>> [study.name for study in chosen("causal")]
        ['causal']
    """
    if name == ALL:
        return list(STUDIES.values())
    if name not in STUDIES:
        raise ValueError(f"study: expected {ALL} or one of {', '.join(STUDIES)}, got {name!r}")
    return [STUDIES[name]]
