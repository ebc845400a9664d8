"""The paper's studies (SAIF, arXiv 2502.11356), on any model and SAEs, each with a verdict."""

from saif_fast.studies.context import Budget, StudyContext
from saif_fast.studies.registry import STUDIES, chosen
from saif_fast.studies.result import (
    Matrix,
    Share,
    StudyResult,
    Table,
    read_studies,
    write_studies,
)
from saif_fast.studies.run import run_studies

__all__ = [
    "STUDIES",
    "Budget",
    "Matrix",
    "Share",
    "StudyContext",
    "StudyResult",
    "Table",
    "chosen",
    "read_studies",
    "run_studies",
    "write_studies",
]
