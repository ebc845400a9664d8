"""The results of studies: figures, a table, a matrix and a verdict each, as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from saif_fast.evaluate.intervals import wilson
from saif_fast.text import read_text

FORMAT = 1
SURE = 0.025  # a smaller one-sided p is no chance

# What became of the paper's claim. "partly": for some of its parts, the instructions or the models.
Outcome: TypeAlias = Literal["reproduced", "partly reproduced", "not reproduced", "undecided"]


class LeftOut(Exception):
    """The reason, in one sentence, why a study has nothing to measure on what it was given."""


class Share(msgspec.Struct, frozen=True):
    """A share of successes, with its Wilson 95 % interval.

    Attributes:
        count: number of successes.
        n: number of trials.
        low: lower end of the interval, 0 to 1.
        high: its upper end.
    """

    count: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Share:
        """Make the share of ``count`` out of ``n``; ValueError if n < 1.

        Examples:
            >>> Share.of(12, 24).value
            0.5
        """
        return cls(count, n, *wilson(count, n))

    @property
    def value(self) -> float:
        """The share itself, 0 to 1."""
        return self.count / self.n

    def __str__(self) -> str:
        return f"{self.count}/{self.n}"


# A number without an interval is a setting or a mean; None = not measured.
Cell: TypeAlias = str | int | float | Share | None


class Table(msgspec.Struct, frozen=True):
    """A table: names of columns, and rows with a cell per column."""

    columns: list[str]
    rows: list[list[Cell]]


class Matrix(msgspec.Struct, frozen=True):
    """A labelled matrix, such as the data of a heat map.

    Attributes:
        name: what a value is.
        rows: labels, one per row of ``values``.
        columns: labels, one per column.
        values: values by row and column; None = not measured.
    """

    name: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]


class StudyResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a study found.

    Attributes:
        study: its name.
        claim: what the paper says, in one sentence.
        outcome: what became of the claim; None = the study was left out.
        verdict: the outcome in one sentence with its main figures, or why it was left out.
        table: the figures.
        matrix: pairwise figures, of a study that has some.
        settings: seeds, budgets and what else was held fixed.
        provenance: model, SAEs, runtime, version and seconds.
    """

    study: str
    claim: str
    outcome: Outcome | None
    verdict: str
    table: Table | None = None
    matrix: Matrix | None = None
    settings: dict[str, str | int | float] = {}
    provenance: dict[str, str | int | float] = {}


class StudyDocument(msgspec.Struct, frozen=True):
    """The file of ``saif study -o``."""

    format: int
    results: list[StudyResult]


def write_studies(results: Sequence[StudyResult], path: Path) -> None:
    """Write results as JSON.

    Examples:
        >>> write_studies(results, Path("study.json"))
        >>> read_studies(Path("study.json")) == list(results)
        True
    """
    document = StudyDocument(FORMAT, list(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def read_studies(path: Path) -> list[StudyResult]:
    """Read the results that :func:`write_studies` wrote.

    Raises:
        ValueError: the file is no such document, or of another format.
        OSError: it cannot be read.

    Examples:
        >>> [result.study for result in read_studies(Path("study.json"))]
        ['wordings', 'k']
    """
    try:
        read = msgspec.json.decode(read_text(path), type=StudyDocument)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: expected the results of studies, got {error}") from None
    if read.format != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {read.format}")
    return read.results


def larger(one: Share, other: Share) -> bool | None:
    """Tell whether ``one`` is larger: True if surely, False if not at all, None if unclear.

    It is surely larger where Fisher's exact test (one-sided, 2.5 %) says so: the probability that
    ``one`` gets so many of all successes or more by chance is the hypergeometric::

        p = sum over c >= one.count of C(one.n, c) * C(other.n, s - c) / C(one.n + other.n, s)

    with ``s`` the successes of both. The trials count as independent. Those on the same contents
    are not, and several draws of random latents are less so.

    Examples:
        >>> larger(Share.of(20, 24), Share.of(4, 24))
        True
    """
    if one.count * other.n <= other.count * one.n:
        return False
    successes = one.count + other.count
    ways = sum(
        math.comb(one.n, count) * math.comb(other.n, successes - count)
        for count in range(one.count, min(one.n, successes) + 1)
    )
    return True if ways / math.comb(one.n + other.n, successes) < SURE else None


def outcome_of(parts: Sequence[bool | None]) -> Outcome:
    """Combine what each part says of a claim: True holds, False does not, None is unclear.

    Examples:
        >>> outcome_of([True, None])
        'partly reproduced'
    """
    if parts and all(parts):
        return "reproduced"
    if any(parts):
        return "partly reproduced"
    return "undecided" if not parts or None in parts else "not reproduced"


def said(part: bool | None) -> str:
    """Return a part of a claim in a word, for a verdict."""
    return "unclear" if part is None else "yes" if part else "no"


def both_hold(one: bool | None, other: bool | None) -> bool | None:
    """Tell whether two parts of a claim hold: False if either does not, None if it is unclear."""
    if one is False or other is False:
        return False
    return None if one is None or other is None else True
