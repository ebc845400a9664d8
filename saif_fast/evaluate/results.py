"""What an evaluation found: one row a method, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from saif_fast.evaluate.intervals import Tally
from saif_fast.evaluate.trials import Choice

# The order of the table; methods not named here follow in their own order.
ORDER = (
    "unsteered",
    "prompted",
    "saif",
    "diff_in_means",
    "logit_bias",
    "logit_bias_full",
    "logit_bias_no_sae",
    "logit_bias_no_sae_full",
    "random",
    "noise",
)

_LABEL = "95 % of strict"
_PADDING = 3  # of a column: a space on both sides and the rule
_COLUMN = len("100/100 96-100") + _PADDING


class Row(msgspec.Struct, frozen=True):
    """One method on the report contents. Rates are between 0 and 1.

    Attributes:
        strict, loose: share of replies that do fully, or in part, what was asked.
        low, high: Wilson 95 % interval of ``strict``.
        n: report contents.
        selected: strict rate on the select contents, where the candidate was chosen.
        candidates: how many there were to choose from.
        parameters: of the chosen one.
        runtime: what generated the replies.
    """

    strict: float
    loose: float
    low: float
    high: float
    n: int
    selected: float
    candidates: int
    parameters: dict[str, int | float | str]
    runtime: str

    @classmethod
    def of(cls, choice: Choice, tally: Tally, runtime: str) -> Row:
        """The row of a chosen candidate with its tally on the report contents."""
        low, high = tally.interval
        return cls(
            strict=tally.strict / tally.n,
            loose=tally.loose / tally.n,
            low=low,
            high=high,
            n=tally.n,
            selected=choice.selected.strict / choice.selected.n,
            candidates=choice.n_candidates,
            parameters=dict(choice.candidate.parameters),
            runtime=runtime,
        )


Rows = Mapping[str, Mapping[str, Row]]


def ordered(rows: Rows) -> list[str]:
    """Methods of all instructions in the table's order."""
    methods = dict.fromkeys(method for by_method in rows.values() for method in by_method)
    return sorted(methods, key=lambda m: ORDER.index(m) if m in ORDER else len(ORDER))


def write_results(rows: Rows, path: Path) -> None:
    """JSON ``{instruction: {method: {strict, loose, low, high, ...}, k, beta}}``, both of SAIF."""
    document: dict[str, Any] = {}
    for instruction, by_method in rows.items():
        chosen = by_method["saif"].parameters
        document[instruction] = {
            **{method: by_method[method] for method in ordered({instruction: by_method})},
            "k": chosen["k"],
            "beta": chosen["beta"],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def tables(rows: Rows, title: str, width: int) -> list[Table]:
    """Tables of as many instructions as fit into ``width`` columns of text each."""
    methods = ordered(rows)
    label = max(len(method) for method in [*methods, _LABEL]) + _PADDING
    each = max(1, (width - label - 1) // _COLUMN)
    names = list(rows)
    return [
        _table({name: rows[name] for name in names[i : i + each]}, methods, title)
        for i in range(0, len(names), each)
    ]


def _table(rows: Rows, methods: Sequence[str], title: str) -> Table:
    """Methods down, instructions across: strict/loose in %, with the interval of strict."""
    shown = Table(title=title, title_justify="left")
    shown.add_column(f"strict/loose %\n{_LABEL}", no_wrap=True)
    for instruction, by_method in rows.items():
        chosen = by_method["saif"].parameters if "saif" in by_method else {}
        settings = f"\nk={chosen['k']} beta={chosen['beta']:g}" if chosen else ""
        shown.add_column(f"{instruction}{settings}", justify="right", no_wrap=True)
    for method in methods:
        cells = [_cell(by_method.get(method)) for by_method in rows.values()]
        shown.add_row(method, *cells, style="bold" if method == "saif" else None)
    return shown


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    low, high = 100 * row.low, 100 * row.high
    return f"{100 * row.strict:.0f}/{100 * row.loose:.0f} [dim]{low:.0f}-{high:.0f}[/dim]"
