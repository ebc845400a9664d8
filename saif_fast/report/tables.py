"""Tables of the report: results with their intervals, latents with the tokens they promote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saif_fast.edits import Edit
from saif_fast.evaluate.document import ShownLatent
from saif_fast.evaluate.results import ResultRow
from saif_fast.report.figures import colour_of
from saif_fast.report.markup import Child, Html, joined, tag
from saif_fast.studies.result import Share

_SHOWN_LATENTS = 12


def method_style(method: str) -> str:
    """Return a style attribute that gives an element the method's colour."""
    return f"--dot: var({colour_of(method)[0]})"


def method_name(method: str) -> Html:
    """Return the method's name behind a dot of its colour."""
    return joined(tag("span", class_="dot", style=method_style(method)), method)


def scrolled(table: Html) -> Html:
    """Put a table into a box in which it scrolls, so that the page does not."""
    return tag("div", table, class_="scroll", tabindex=0)


def results_table(rows: Mapping[str, ResultRow], best: str | None) -> Html:
    """Make the table of results: a row per method, shares with their Wilson 95 % intervals.

    Args:
        rows: results by method.
        best: the method that is put in bold; None = none.

    Examples:
        >>> results_table(task.rows, "saif")
    """
    columns = {
        "method": None,
        "follow": "strict",
        "sound": "quality",
        "follow and sound": "both",
        "score": None,
        "follow in part": None,
        "chosen from": None,
        "settings": None,
    }
    asked = {
        name: field
        for name, field in columns.items()
        if field is None or any(getattr(row, field) is not None for row in rows.values())
    }
    if "sound" not in asked:
        asked.pop("score")
    body = [
        tag(
            "tr",
            tag("th", method_name(method), scope="row"),
            [_cell(method, name, row, field) for name, field in list(asked.items())[1:]],
            class_="best" if method == best else None,
        )
        for method, row in rows.items()
    ]
    head = tag("tr", [tag("th", name, scope="col") for name in asked])
    return scrolled(tag("table", tag("thead", head), tag("tbody", body), class_="results"))


def _cell(method: str, name: str, row: ResultRow, field: str | None) -> Html:
    if field is not None:
        value: float | None = getattr(row, field)
        if value is None:
            return tag("td", "–")
        share = Share(row.count(value), row.n, *row.interval(value))
        return tag("td", interval(share, method_style(method)))
    match name:
        case "score":
            return tag("td", "–" if row.score is None else f"{row.score:.2f}")
        case "follow in part":
            return tag("td", f"{row.count(row.loose)}/{row.n}")
        case "chosen from":
            few = f"{row.candidates} candidate{'s' * (row.candidates != 1)}"
            return tag("td", few, tag("br"), tag("small", f"{100 * row.selected:.0f} % on select"))
    return tag("td", tag("span", settings(row.parameters), class_="small"), class_="wrap")


def interval(share: Share, style: str) -> Html:
    """Show a share as counts with its interval, as text and as a bar.

    Args:
        share: the share.
        style: the bar's style, which has its colour.
    """
    low, high, at = (100 * each for each in (share.low, share.high, share.value))
    place = f"--low: {low:.1f}%; --high: {high:.1f}%; --at: {at:.1f}%"
    return joined(
        f"{share} ",
        tag("small", f"{low:.0f}–{high:.0f} %"),
        tag("div", tag("i"), tag("b"), class_="bar", style=f"{place}; {style}"),
    )


def settings(parameters: Mapping[str, int | float | str]) -> str:
    """Return parameters as one line of text."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in parameters.items()
    )


def latents_list(latents: Sequence[ShownLatent]) -> Html:
    """List a set's latents, each with the tokens that it promotes; the later ones are folded away.

    Examples:
        >>> latents_list(task.latents["saif"])
    """
    items = [
        tag("li", tag("span", _facts(each)), tag("span", [_token(t) for t in each.promoted]))
        for each in latents
    ]
    shown, more = items[:_SHOWN_LATENTS], items[_SHOWN_LATENTS:]
    folded = tag("details", tag("summary", f"{len(more)} more"), tag("ul", more, class_="latents"))
    return joined(tag("ul", shown, class_="latents"), folded if more else "")


def _facts(shown: ShownLatent) -> Html:
    latent = shown.latent
    consistency = (
        "" if latent.consistency is None else f", consistency {100 * latent.consistency:.0f} %"
    )
    return joined(
        tag("b", str(latent.index)),
        tag("span", f" layer {shown.layer}, {_edit(latent.edit)}{consistency}", class_="small"),
    )


def _edit(edit: Edit) -> str:
    value = "" if edit.kind == "ablate" else f" {edit.value:.3g}"
    return f"{edit.kind.replace('_', ' ')}{value}{' where active' if edit.gated else ''}"


def _token(token: str) -> Html:
    """Show a token with its white space: a space as a faint dot, others by their escapes."""
    parts: list[Child] = []
    for character in token:
        if character == " ":
            parts.append(tag("i", "·"))
        elif character.isprintable():
            parts.append(character)
        else:
            parts.append(tag("i", repr(character)[1:-1]))
    return tag("span", parts or tag("i", "(empty)"), class_="token")
