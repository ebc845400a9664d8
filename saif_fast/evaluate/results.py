"""The results of an evaluation, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
from rich.table import Table

from saif_fast.evaluate.intervals import Accuracy, Interval, wilson
from saif_fast.evaluate.trials import Choice

# The order of the table. Methods not named here follow in their own order.
ORDER = (
    "unsteered",
    "prompted",
    "saif",
    "share",
    "live",
    "diff_in_means",
    "project",
    "logit_bias",
    "logit_bias_full",
    "logit_bias_no_sae",
    "logit_bias_no_sae_full",
    "random",
    "noise",
)

_LABEL = "95 % of strict"
_PADDING = 3  # per column: a space on both sides and the rule
_COLUMN = len("100/100 96-100") + _PADDING
_SOUND = len("/100")


class ResultRow(msgspec.Struct, frozen=True):
    """The result of one method on the report contents of a task. Shares are between 0 and 1.

    Attributes:
        strict: share of replies that do fully what was asked.
        loose: share of replies that do it at least in part.
        low: lower end of the Wilson 95 % interval of ``strict``.
        high: its upper end.
        n: number of report contents.
        selected: strict share on the select contents, on which the candidate was chosen.
        candidates: number of candidates that there were to choose from.
        parameters: parameters of the chosen candidate.
        runtime: name of the runtime that generated the replies.
        quality: share of sound replies; None = not asked.
        score: harmonic mean of ``strict`` and ``quality``; None = not asked.
        both: share of replies that are strictly right and sound; None = not asked.
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
    quality: float | None = None
    score: float | None = None
    both: float | None = None

    def count(self, share: float) -> int:
        """Return the number of replies that a share is of."""
        return round(share * self.n)

    def interval(self, share: float) -> Interval:
        """Return the Wilson 95 % interval of one of the shares."""
        return wilson(self.count(share), self.n)

    @classmethod
    def from_choice(cls, choice: Choice, accuracy: Accuracy, runtime: str) -> ResultRow:
        """Make the row of a chosen candidate from its accuracy on the report contents."""
        low, high = accuracy.interval
        return cls(
            strict=accuracy.strict / accuracy.n,
            loose=accuracy.loose / accuracy.n,
            low=low,
            high=high,
            n=accuracy.n,
            selected=choice.selected.strict / choice.selected.n,
            candidates=choice.n_candidates,
            parameters=dict(choice.candidate.parameters),
            runtime=runtime,
        )


# By instruction and method.
Results: TypeAlias = Mapping[str, Mapping[str, ResultRow]]


def ordered(results: Results) -> list[str]:
    """Return the methods of all instructions in the table's order."""
    methods = dict.fromkeys(method for by_method in results.values() for method in by_method)
    return sorted(methods, key=lambda m: ORDER.index(m) if m in ORDER else len(ORDER))


def tables(results: Results, title: str, width: int) -> list[Table]:
    """Make tables ``width`` characters wide, each of as many instructions as fit."""
    methods = ordered(results)
    label = max(len(method) for method in [*methods, _LABEL]) + _PADDING
    column = _COLUMN + _SOUND * _has_quality(results)
    each = max(1, (width - label - 1) // column)
    names = list(results)
    return [
        _table({name: results[name] for name in names[i : i + each]}, methods, title)
        for i in range(0, len(names), each)
    ]


def _table(results: Results, methods: Sequence[str], title: str) -> Table:
    """Make a table, methods down, instructions across: strict/loose in %, strict's interval."""
    shown = Table(title=title, title_justify="left")
    label = "strict/loose/sound %" if _has_quality(results) else "strict/loose %"
    shown.add_column(f"{label}\n{_LABEL}", no_wrap=True)
    for instruction, by_method in results.items():
        chosen = by_method["saif"].parameters if "saif" in by_method else {}
        settings = " ".join(f"{name}={chosen[name]:g}" for name in ("k", "beta") if name in chosen)
        shown.add_column(f"{instruction}\n{settings}", justify="right", no_wrap=True)
    for method in methods:
        cells = [_cell(by_method.get(method)) for by_method in results.values()]
        shown.add_row(method, *cells, style="bold" if method == "saif" else None)
    return shown


def _has_quality(results: Results) -> bool:
    return any(row.quality is not None for rows in results.values() for row in rows.values())


def _cell(row: ResultRow | None) -> str:
    if row is None:
        return "-"
    low, high = 100 * row.low, 100 * row.high
    sound = "" if row.quality is None else f"/{100 * row.quality:.0f}"
    shares = f"{100 * row.strict:.0f}/{100 * row.loose:.0f}{sound}"
    return f"{shares} [dim]{low:.0f}-{high:.0f}[/dim]"
