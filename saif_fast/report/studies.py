"""The section of a studies document: the paper's claims, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from saif_fast.names import set_name
from saif_fast.report.markup import Html, joined, tag
from saif_fast.report.page import Figure, Section
from saif_fast.report.study_figures import SHARES, line_of, matrix_map, sweeps, top_of, varied
from saif_fast.report.tables import interval, scrolled
from saif_fast.studies.result import Cell, Matrix, Share, StudyResult, Table

_LEFT_OUT = "left out"
_KINDS = {
    "reproduced": "good",
    "partly reproduced": "even",
    "not reproduced": "bad",
    "undecided": "open",
    _LEFT_OUT: "open",
}
_LONG = 12  # rows of a table that is folded away
_BRIEF = 180  # characters of a verdict in the summary
_MOST_PARTS = 6  # of a verdict that are not folded away


def models_of(results: Iterable[StudyResult]) -> list[str]:
    """List the models of studies, each once."""
    named = (str(each.provenance.get("model", "")).split("; ") for each in results)
    return [model for model in dict.fromkeys(model for each in named for model in each) if model]


def claims_section(results: Sequence[StudyResult], anchor: str = "claims") -> Section:
    """Make the section of studies: a summary, then each study with its figures and its table.

    Args:
        results: what the studies found.
        anchor: the section's id, with which the ids and the figures' names in it begin.

    Examples:
        >>> make_page("Studies", joined(), [claims_section(read_studies(Path("study.json")))])
    """
    figures: list[Figure] = []
    studies = []
    for result in results:
        place = _place(anchor, result)
        matrix = None if result.matrix is None else matrix_map(place, result.matrix)
        lines = sweeps(place, result)
        figures += [*lines.values(), *([] if matrix is None else [matrix])]
        studies.append(_study(place, result, lines, matrix))
    outcomes = Counter(each.outcome or _LEFT_OUT for each in results)
    body = joined(
        tag(
            "p",
            "What SAIF's paper (arXiv 2502.11356) says of how models follow instructions, and "
            "whether it holds here. A claim that is undecided has too few replies to tell.",
            class_="faint",
        ),
        _summary(results, anchor),
        studies,
    )
    told = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in _KINDS if outcomes[outcome])
    return Section(anchor, "The paper's claims", body, figures, tag("span", told, class_="faint"))


def _place(anchor: str, result: StudyResult) -> str:
    return f"{anchor}-{set_name(result.study)}"


def _summary(results: Sequence[StudyResult], anchor: str) -> Html:
    head = tag("tr", [tag("th", each) for each in ("study", "claim", "outcome", "verdict")])
    body = [
        tag(
            "tr",
            tag("th", tag("a", each.study, href=f"#{_place(anchor, each)}"), scope="row"),
            tag("td", each.claim),
            tag("td", tag("span", each.outcome or _LEFT_OUT, class_=f"outcome {_kind(each)}")),
            tag("td", _brief(each)),
        )
        for each in results
    ]
    return tag("table", tag("thead", head), tag("tbody", body), class_="claims")


def _kind(result: StudyResult) -> str:
    return _KINDS[result.outcome or _LEFT_OUT]


def _told(result: StudyResult) -> tuple[str, list[str]]:
    """Return a verdict's beginning, which repeats the outcome, and its parts."""
    outcome = result.outcome or _LEFT_OUT
    if not result.verdict.startswith(outcome):
        return outcome, [result.verdict]
    head, _, parts = result.verdict.partition(": ")
    return head, parts.split("; ")


def _brief(result: StudyResult) -> str:
    """Return the first parts of a verdict."""
    _, parts = _told(result)
    kept = [p for i, p in enumerate(parts) if i == 0 or len("; ".join(parts[: i + 1])) <= _BRIEF]
    left = len(parts) - len(kept)
    return "; ".join(kept) + (f"; and {left} more" if left else "")


def _study(
    place: str, result: StudyResult, lines: Mapping[str, Figure], matrix: Figure | None
) -> Html:
    return tag(
        "div",
        tag("h3", result.study),
        tag("p", result.claim),
        _verdict(result),
        _lines(result, lines) if lines else "",
        "" if result.matrix is None or matrix is None else _matrix(result.matrix, matrix),
        "" if result.table is None else _folded(result.table),
        _origin(result),
        class_="study",
        id=place,
    )


def _verdict(result: StudyResult) -> Html:
    head, parts = _told(result)
    shown, more = [[tag("p", p) for p in ps] for ps in (parts[:_MOST_PARTS], parts[_MOST_PARTS:])]
    return tag(
        "div",
        tag("strong", f"{head[:1].upper()}{head[1:]}"),
        shown,
        tag("details", tag("summary", f"{len(more)} more"), more) if more else "",
        class_=f"verdict {_kind(result)}",
    )


def _lines(result: StudyResult, lines: Mapping[str, Figure]) -> Html:
    kinds = list(dict.fromkeys(str(row["what"]) for row in varied(result)))
    told = "; ".join(f"{line_of(kinds, kind)}: {kind}" for kind in kinds)
    return joined(
        tag(
            "div",
            [tag("span", _dot(share), share) for share in SHARES],
            tag("span", told, class_="faint") if len(kinds) > 1 else "",
            class_="legend",
        ),
        tag(
            "div",
            [tag("div", tag("h4", name), each.element()) for name, each in lines.items()],
            class_="maps",
        ),
    )


def _dot(column: str) -> Html:
    return tag("span", class_="dot", style=_style(column))


def _style(column: str) -> str:
    return f"--dot: var({SHARES.get(column, '--accent')})"


def _matrix(matrix: Matrix, figure: Figure) -> Html:
    name = f"{matrix.name[:1].upper()}{matrix.name[1:]}"
    return joined(
        tag("h4", name),
        tag("div", "0", tag("i"), f"{top_of(matrix):.2f}", class_="scale"),
        tag("div", figure.element(), class_="square"),
    )


def _folded(table: Table) -> Html:
    shown = study_table(table)
    if len(table.rows) <= _LONG:
        return shown
    return tag("details", tag("summary", f"Table of {len(table.rows)} rows"), shown)


def study_table(table: Table) -> Html:
    """Make the table of a study; rows of one instruction, if that is first, are below its name.

    Examples:
        >>> study_table(result.table)
    """
    grouped = table.columns[:1] == ["instruction"]
    columns = table.columns[grouped:]
    body = [
        [
            tag("tr", tag("th", _text(name), colspan=len(columns)), class_="group")
            if grouped
            else "",
            [_row(columns, row[grouped:]) for row in rows],
        ]
        for name, rows in groupby(table.rows, key=lambda row: row[0] if grouped else None)
    ]
    head = tag("tr", [tag("th", each, scope="col") for each in columns])
    return scrolled(tag("table", tag("thead", head), tag("tbody", body), class_="figures"))


def _row(columns: Sequence[str], row: Sequence[Cell]) -> Html:
    cells = [
        tag(
            "td" if i else "th",
            interval(cell, _style(column)) if isinstance(cell, Share) else _text(cell),
            class_="wrap" if isinstance(cell, str) else None,
            scope=None if i else "row",
        )
        for i, (column, cell) in enumerate(zip(columns, row, strict=True))
    ]
    return tag("tr", cells)


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return "–" if cell is None else str(cell)


def _origin(result: StudyResult) -> Html:
    facts = {**result.settings, **result.provenance}
    if not facts:
        return Html()
    listed = [(tag("dt", name), tag("dd", _text(fact))) for name, fact in facts.items()]
    return tag("details", tag("summary", "Settings and origin"), tag("dl", listed))
