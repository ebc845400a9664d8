"""Axes, colours and layout that figures share."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SCALE = [[0.0, "--scale-0"], [0.5, "--scale-1"], [1.0, "--scale-2"]]
_MOST_TICKS = 8
_FONT = {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "color": "--ink"}
LEAST_RANGE = 0.1  # of the colours, so that a score of 0.01 does not look like success

# Axes do not zoom, so that a finger on a figure scrolls the page.
AXIS: Mapping[str, Any] = {
    "fixedrange": True,
    "zeroline": False,
    "gridcolor": "--line",
    "linecolor": "--line",
    "tickfont": {"size": 11},
}
SHARE_AXIS: Mapping[str, Any] = {
    **AXIS,
    "range": [-0.04, 1.04],
    "tickvals": [0, 0.25, 0.5, 0.75, 1],
    "ticktext": ["0", "25 %", "50 %", "75 %", "100 %"],
}


def layout() -> dict[str, Any]:
    """Return what every figure's layout has."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {**_FONT, "size": 12},
        "hoverlabel": {
            "bgcolor": "--paper",
            "bordercolor": "--line",
            "font": _FONT,
            "align": "left",
        },
        "dragmode": False,
        "showlegend": False,
    }


def heat_map(
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    top: float,
    name: str,
) -> dict[str, Any]:
    """Return the trace of a heat map, without its places on the axes.

    Args:
        values: values by row and column; None = an empty cell.
        texts: what stands in each cell.
        hovers: what is told of each cell, as markup of Plotly's.
        top: the value of the last colour; the first one is that of 0.
        name: what a value is, in a word.
    """
    return {
        "type": "heatmap",
        "z": values,
        "text": texts,
        "customdata": hovers,
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "colorscale": _SCALE,
        "zmin": 0,
        "zmax": round(top, 4),
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
        "colorbar": {"title": {"text": name}, "outlinewidth": 0, "thickness": 12},
    }


def error_bars(
    intervals: Sequence[tuple[float, float]], shares: Sequence[float], colour: str
) -> dict[str, Any]:
    """Return the error bars of shares with these intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - share for (_, high), share in zip(intervals, shares, strict=True)],
        "arrayminus": [share - low for (low, _), share in zip(intervals, shares, strict=True)],
        "color": colour,
        "thickness": 1.2,
        "width": 0,
    }


def category(title: str, values: Sequence[str]) -> dict[str, Any]:
    """Return an axis of categories; where they are many, every second one is named."""
    return {
        **AXIS,
        "type": "category",
        "title": {"text": html.escape(title), "standoff": 6},
        "categoryorder": "array",
        "categoryarray": list(values),
        "tickvals": list(values)[:: 1 + (len(values) > _MOST_TICKS)],
        "ticktext": [_short(each) for each in values][:: 1 + (len(values) > _MOST_TICKS)],
        "tickangle": 0,
        "showgrid": False,
        "ticks": "",
    }


def places(labels: Sequence[str], most: int) -> dict[str, Any]:
    """Return an axis of labelled places 0, 1, ...; at most ``most`` of them are named, evenly."""
    step = -(-len(labels) // most) or 1
    return {
        **AXIS,
        "tickvals": list(range(0, len(labels), step)),
        "ticktext": [html.escape(_cut(each)) for each in labels[::step]],
        "range": [-0.5, len(labels) - 0.5],
        "showgrid": False,
        "ticks": "",
    }


def label(value: int | float | str) -> str:
    """Return a setting's value as text that Plotly shows as it is."""
    return html.escape(value) if isinstance(value, str) else f"{value:g}"


def labels(values: Iterable[int | float | str]) -> list[str]:
    """Return the distinct values as labels, numbers ascending, then texts."""
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return [label(value) for value in distinct]


def _short(label: str) -> str:
    """Return a number's label with two digits, if it is a long one."""
    return f"{float(label):.2g}" if re.fullmatch(r"\d+\.\d+", label) and len(label) > 4 else label


def _cut(label: str) -> str:
    return label if len(label) <= 26 else f"{label[:25]}…"
