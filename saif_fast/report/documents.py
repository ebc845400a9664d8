"""Documents that a page is made of: results of ``saif eval``, studies of ``saif study``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from saif_fast.evaluate.document import ResultsDocument, read_results
from saif_fast.report import evaluation
from saif_fast.report.markup import Html, joined, tag
from saif_fast.report.page import Section
from saif_fast.report.studies import claims_section, models_of
from saif_fast.studies.result import StudyResult, read_studies
from saif_fast.text import read_text

Document: TypeAlias = ResultsDocument | list[StudyResult]


class _Keys(msgspec.Struct):
    """What tells the two kinds of documents apart."""

    tasks: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    results: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def read_document(path: Path) -> Document:
    """Read a file of ``saif eval -o`` or of ``saif study -o``, whichever it is.

    Raises:
        ValueError: it is neither, or cannot be read. The message begins with the path.

    Examples:
        >>> isinstance(read_document(Path("study.json")), list)
        True
    """
    expected = (
        "expected results of saif eval, saif demo-tiny, saif identify --results or saif study"
    )
    try:
        keys = msgspec.json.decode(read_text(path), type=_Keys)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, msgspec.MsgspecError) as error:  # not UTF-8 is a ValueError
        raise ValueError(f"{path}: {expected}: {error}") from None
    if keys.results is not msgspec.UNSET:
        return read_studies(path)
    if keys.tasks is not msgspec.UNSET:
        return read_results(path)
    raise ValueError(f"{path}: {expected}, got neither tasks nor results of studies")


def page_title(documents: Sequence[Document]) -> str:
    """Return the title of a page of all documents."""
    models = dict.fromkeys(model for each in documents for model in _models(each))
    return f"Instruction following of {', '.join(models)}"


def page_lead(documents: Sequence[Document]) -> Html:
    """Return what stands below the title: how much there is of each document."""
    return joined([_lead(each) for each in documents])


def page_sections(documents: Sequence[Document]) -> list[Section]:
    """Make the sections of all documents, in their order.

    Where several are of one kind, headings name the model, and ids and figures a number.

    Examples:
        >>> make_page(page_title(documents), page_lead(documents), page_sections(documents))
    """
    kinds = Counter(type(each) for each in documents)
    sections = []
    for i, each in enumerate(documents, start=1):
        several = kinds[type(each)] > 1
        prefix = f"{i}-" if several else ""
        if isinstance(each, ResultsDocument):
            own = [_prefixed(section, prefix) for section in evaluation.sections_of(each)]
        else:
            own = [claims_section(each, f"{prefix}claims")]
        model = ", ".join(_models(each))
        sections += [replace(s, title=f"{s.title}: {model}") if several else s for s in own]
    return sections


def _prefixed(section: Section, prefix: str) -> Section:
    figures = [replace(each, name=f"{prefix}{each.name}") for each in section.figures]
    return replace(section, anchor=f"{prefix}{section.anchor}", figures=figures)


def _models(document: Document) -> list[str]:
    if isinstance(document, ResultsDocument):
        return [document.run.model]
    return models_of(document)


def _lead(document: Document) -> Html:
    if isinstance(document, ResultsDocument):
        return evaluation.lead_of(document)
    studies = f"{len(document)} stud{'y' if len(document) == 1 else 'ies'} of the paper's claims"
    told = f"{studies} on {', '.join(_models(document))}. Intervals are Wilson's, 95\u00a0%."
    return tag("p", told, class_="faint")
