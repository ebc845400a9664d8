"""The figures of a study: its matrix as a heat map, and what it varies against its shares."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from saif_fast.names import set_name
from saif_fast.report.axes import (
    LEAST_RANGE,
    SHARE_AXIS,
    error_bars,
    heat_map,
    label,
    layout,
    places,
)
from saif_fast.report.page import Figure
from saif_fast.studies.result import Cell, Matrix, Share, StudyResult

SHARES = {"follow": "--m-teal", "sound": "--m-orange"}  # the shares that a sweep draws
LINES = ("solid", "dotted", "dashed")
_DASH = {"solid": "solid", "dotted": "dot", "dashed": "dash"}
_MOST_NAMED = 12  # rows or columns of a heat map
_MOST_NUMBERED = 6  # columns of a heat map whose cells have their numbers


def matrix_map(name: str, matrix: Matrix) -> Figure:
    """Draw a matrix as a heat map, its first row at the top.

    Args:
        name: the figure's name.
        matrix: the matrix.

    Examples:
        >>> matrix_map("claims-wordings", result.matrix).height
        620
    """
    numbered = len(matrix.columns) <= _MOST_NUMBERED
    what = html.escape(matrix.name)
    trace = heat_map(
        [[None if each is None else round(each, 4) for each in line] for line in matrix.values],
        [[_short(each) if numbered else "" for each in line] for line in matrix.values],
        [
            [
                f"<b>{_short(each)}</b><br>{html.escape(row)}<br>{html.escape(column)}"
                for column, each in zip(matrix.columns, line, strict=True)
            ]
            for row, line in zip(matrix.rows, matrix.values, strict=True)
        ],
        top_of(matrix),
        "",
    )
    gap = {} if numbered else {"xgap": 0, "ygap": 0}
    down, across = places(matrix.rows, _MOST_NAMED), places(matrix.columns, _MOST_NAMED)
    # Turned to the left, the last label does not leave the figure.
    turned = {"automargin": True, "autotickangles": [0, -40, -90]}
    shown = {
        **layout(),
        "xaxis": {**across, **turned},
        "yaxis": {**down, "range": down["range"][::-1], "automargin": True},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
    }
    height = 90 + len(matrix.rows) * (30 if len(matrix.rows) <= _MOST_NAMED else 14)
    return Figure(name, what, [{**trace, **gap}], shown, height)


def top_of(matrix: Matrix) -> float:
    """Return the value of a matrix's last colour."""
    return max([LEAST_RANGE, *(each for line in matrix.values for each in line if each)])


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def sweeps(name: str, result: StudyResult) -> dict[str, Figure]:
    """Draw a study that varies what it is named for, such as ``k``: shares with their intervals.

    Its table has the columns ``instruction``, ``what``, one of the study's name and those of
    :data:`SHARES`. Rows without a number in the study's column, such as the prompt's, are left out.

    Args:
        name: the beginning of the figures' names.
        result: the study's result.

    Returns:
        A figure per instruction; none for a study of another kind.

    Examples:
        >>> list(sweeps("claims-k", result))
        ['french', 'title']
    """
    rows: dict[str, list[Mapping[str, Cell]]] = {}
    for row in varied(result):
        rows.setdefault(str(row["instruction"]), []).append(row)
    return {
        instruction: Figure(
            name=f"{name}-{set_name(instruction)}",
            title=html.escape(f"{instruction}: replies by {result.study}"),
            data=_lines(own, result.study),
            layout=_sweep_layout(result.study, _values(own, result.study)),
            height=230,
        )
        for instruction, own in rows.items()
        if len(_values(own, result.study)) > 1
    }


def varied(result: StudyResult) -> list[Mapping[str, Cell]]:
    """List the rows of a sweep, by column, that have a number of what is varied."""
    table = result.table
    if table is None or not {"instruction", "what", result.study, *SHARES} <= set(table.columns):
        return []
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [row for row in rows if isinstance(row[result.study], int | float)]


def _values(rows: Sequence[Mapping[str, Cell]], setting: str) -> list[float]:
    return sorted({each for row in rows if isinstance(each := row[setting], int | float)})


def _lines(rows: Sequence[Mapping[str, Cell]], setting: str) -> list[dict[str, Any]]:
    """Draw a line per share and kind of set; beside each other, so that no bar hides another."""
    kinds = list(dict.fromkeys(str(row["what"]) for row in rows))
    names = [(kind, share) for kind in kinds for share in SHARES]
    place = {value: i for i, value in enumerate(_values(rows, setting))}
    traces = []
    for i, (kind, name) in enumerate(names):
        points = sorted(
            (place[value], share.count, share)
            for row in rows
            if row["what"] == kind
            and isinstance(value := row[setting], int | float)
            and isinstance(share := row[name], Share)
        )
        shares = [share for *_, share in points]
        told = html.escape(f"{kind}: {name}")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": told,
                "x": [at + 0.12 * (i - (len(names) - 1) / 2) for at, *_ in points],
                "y": [share.value for share in shares],
                "error_y": error_bars(
                    [(share.low, share.high) for share in shares],
                    [share.value for share in shares],
                    SHARES[name],
                ),
                "line": {"color": SHARES[name], "dash": _DASH[line_of(kinds, kind)], "width": 1.6},
                "marker": {"color": SHARES[name], "size": 6},
                "customdata": [
                    f"<b>{share} {name}</b> ({100 * share.low:.0f}–{100 * share.high:.0f} %)"
                    f"<br>{html.escape(kind)}"
                    for share in shares
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    return traces


def line_of(kinds: Sequence[str], kind: str) -> str:
    """Return how the lines of a kind are drawn, of :data:`LINES`."""
    return LINES[kinds.index(kind) % len(LINES)]


def _sweep_layout(setting: str, values: Sequence[float]) -> dict[str, Any]:
    across = places([label(each) for each in values], len(values))
    return {
        **layout(),
        "xaxis": {**across, "title": {"text": html.escape(setting), "standoff": 6}, "tickangle": 0},
        "yaxis": SHARE_AXIS,
        "margin": {"l": 46, "r": 8, "t": 8, "b": 42},
        "hovermode": "closest",
    }
