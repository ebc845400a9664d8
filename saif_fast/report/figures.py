"""The figures of a task: the score by layer and strength, and obedience against quality."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from saif_fast.evaluate.document import TaskResults, TriedCandidate
from saif_fast.evaluate.results import ResultRow
from saif_fast.names import set_name
from saif_fast.report.axes import (
    LEAST_RANGE,
    SHARE_AXIS,
    category,
    error_bars,
    heat_map,
    label,
    labels,
    layout,
)
from saif_fast.report.page import Figure
from saif_fast.report.verdict import portion

# The axes of a method's heat map are its first parameters of these names.
_ROWS = ("layer", "layers", "tokens")
_COLUMNS = ("strength", "multiple", "largest_bias", "beta")

_COLOURS = {
    "unsteered": ("--m-grey", "circle-open"),
    "prompted": ("--ink", "circle-open"),
    "saif": ("--m-red", "circle"),
    "share": ("--m-orange", "circle"),
    "live": ("--m-teal", "circle"),
    "diff_in_means": ("--m-blue", "diamond"),
    "project": ("--m-violet", "diamond"),
    "logit_bias": ("--m-green", "square"),
    "random": ("--m-grey", "x"),
    "noise": ("--m-grey", "cross"),
}
_MORE = ("--m-brown", "--m-pink", "--m-olive", "--m-cyan")


def colour_of(method: str) -> tuple[str, str]:
    """Return a method's colour, as a name of ``page.css``, and its marker."""
    if method in _COLOURS:
        return _COLOURS[method]
    base = next((known for known in _COLOURS if method.startswith(f"{known}_")), None)
    if base is not None:
        return _COLOURS[base][0], "triangle-up"
    return _MORE[sum(method.encode()) % len(_MORE)], "triangle-up"


def heat_maps(name: str, task: TaskResults) -> list[tuple[str, Figure]]:
    """Make a heat map for each method that has rows and columns to show.

    A cell is the best candidate at that layer and strength, whatever else was varied. One that went
    further in the search comes before one that did not. All maps of a task share their colours.

    Args:
        name: the task's name.
        task: its results.

    Returns:
        The figures, by method, in the order of the best candidates.

    Examples:
        >>> [method for method, _ in heat_maps("french", task)]
        ['project', 'saif', 'live']
    """
    top = max([LEAST_RANGE, *(each.score for each in task.tried)])
    last = max((each.round for each in task.tried), default=0)
    methods = dict.fromkeys(each.method for each in task.tried)
    found = []
    for method in methods:
        own = [each for each in task.tried if each.method == method]
        rows, columns = _axis(own, _ROWS), _axis(own, _COLUMNS)
        if rows is not None and columns is not None:
            found.append((method, _heat_map(name, method, own, rows, columns, top, last)))
    return found


def _axis(candidates: Sequence[TriedCandidate], names: Iterable[str]) -> str | None:
    """Return the first name that is a parameter of all candidates."""
    shared = (name for name in names if all(name in each.parameters for each in candidates))
    return next(shared, None)


def _heat_map(
    name: str,
    method: str,
    candidates: Sequence[TriedCandidate],
    rows: str,
    columns: str,
    top: float,
    last: int,
) -> Figure:
    cells: dict[tuple[str, str], TriedCandidate] = {}
    for each in candidates:
        place = (label(each.parameters[rows]), label(each.parameters[columns]))
        if place not in cells or _rank(each) > _rank(cells[place]):
            cells[place] = each
    down = labels(each.parameters[rows] for each in candidates)
    across = labels(each.parameters[columns] for each in candidates)
    grid = [[cells.get((row, column)) for column in across] for row in down]
    # The number is told of those only that were tried on the most contents.
    texts = [
        [f"{cell.score:.2f}".lstrip("0") if cell and cell.round == last else "" for cell in line]
        for line in grid
    ]
    scores = [[None if cell is None else round(cell.score, 4) for cell in line] for line in grid]
    hovers = [[_hover(cell) for cell in line] for line in grid]
    trace = {"x": across, "y": down, **heat_map(scores, texts, hovers, top, "score")}
    shown = {
        **layout(),
        "xaxis": category(columns.replace("_", " "), across),
        "yaxis": {**category(rows, down), "tickvals": down, "ticktext": down},
        "margin": {"l": 52, "r": 8, "t": 8, "b": 46},
    }
    return Figure(
        name=f"{set_name(name)}-score-{set_name(method)}",
        title=html.escape(f"{name}, {method}: score by {rows} and {columns.replace('_', ' ')}"),
        data=[trace],
        layout=shown,
        height=max(170, 70 + 26 * len(down)),
    )


def _rank(candidate: TriedCandidate) -> tuple[float, ...]:
    return candidate.round, candidate.score, candidate.both / candidate.n


def _hover(candidate: TriedCandidate | None) -> str:
    if candidate is None:
        return ""
    sound = "" if candidate.sound is None else f", {candidate.sound} sound, {candidate.both} both"
    settings = [
        f"{html.escape(key.replace('_', ' '))}: {label(value)}"
        for key, value in candidate.parameters.items()
    ]
    counted = f"{candidate.strict} of {candidate.n} follow{sound}"
    return "<br>".join([f"<b>score {candidate.score:.2f}</b>", counted, *settings])


def obedience_and_quality(name: str, task: TaskResults) -> Figure | None:
    """Draw replies that follow against sound ones: each method's best, and what else was tried.

    Args:
        name: the task's name.
        task: its results.

    Returns:
        The figure; None where quality was not asked of any method.

    Examples:
        >>> obedience_and_quality("french", task).name
        'french-obedience-quality'
    """
    rows = {method: row for method, row in task.rows.items() if row.quality is not None}
    if not rows:
        return None
    traces = [*_curves(), *_tried(task), *(_point(*each) for each in rows.items())]
    shown = {
        **layout(),
        "xaxis": {**SHARE_AXIS, "title": {"text": "quality: replies that are sound"}},
        "yaxis": {**SHARE_AXIS, "title": {"text": "obedience: replies that follow"}},
        "legend": {"orientation": "h", "y": -0.16, "font": {"size": 12}},
        "margin": {"l": 62, "r": 12, "t": 12, "b": 52},
        "hovermode": "closest",
    }
    return Figure(
        name=f"{set_name(name)}-obedience-quality",
        title=html.escape(f"{name}: obedience against quality"),
        data=traces,
        layout=shown,
        height=420,
    )


def _curves() -> list[dict[str, Any]]:
    """Draw the lines on which the score, a harmonic mean, is the same."""
    lines = []
    for score in (0.25, 0.5, 0.75):
        least = score / (2 - score)  # of one share, where the other one is 1
        steps = [least ** (1 - i / 40) for i in range(41)]
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+text",
                "x": steps,
                "y": [score * x / (2 * x - score) for x in steps],
                "text": [f"score {score:g}"] + ["" for _ in steps[1:]],
                "textposition": "bottom right",
                "textfont": {"size": 10, "color": "--faint"},
                "line": {"color": "--line", "width": 1, "shape": "spline"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    return lines


def _tried(task: TaskResults) -> list[dict[str, Any]]:
    """Draw the candidates of the last round as small points, a trace per method."""
    last = max((each.round for each in task.tried), default=0)
    found: dict[str, list[TriedCandidate]] = {}
    for each in task.tried:
        if each.round == last and each.sound is not None:
            found.setdefault(each.method, []).append(each)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [(each.sound or 0) / each.n for each in own],
            "y": [each.strict / each.n for each in own],
            "marker": {"size": 5, "color": colour_of(method)[0], "opacity": 0.45},
            "customdata": [f"{html.escape(method)}, select contents<br>{_hover(e)}" for e in own],
            "hovertemplate": "%{customdata}<extra></extra>",
            "showlegend": False,
        }
        for method, own in found.items()
    ]


def _point(method: str, row: ResultRow) -> dict[str, Any]:
    assert row.quality is not None
    colour, symbol = colour_of(method)
    name = html.escape(method)
    outline = {} if symbol.endswith("open") else {"color": "--paper"}
    told = [
        f"<b>{name}</b>",
        f"{portion(row, row.strict)} follow",
        f"{portion(row, row.quality)} are sound",
        *([] if row.both is None else [f"{portion(row, row.both)} both"]),
        *(f"{html.escape(key)}: {label(value)}" for key, value in row.parameters.items()),
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [row.quality],
        "y": [row.strict],
        "error_x": error_bars([row.interval(row.quality)], [row.quality], colour),
        "error_y": error_bars([row.interval(row.strict)], [row.strict], colour),
        "marker": {
            # What is open is drawn around the others, which may be at the same place.
            "size": 19 if symbol.endswith("open") else 11,
            "color": colour,
            "symbol": symbol,
            "line": {"width": 2.5 if symbol.endswith("open") else 1, **outline},
        },
        "customdata": ["<br>".join(told)],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
