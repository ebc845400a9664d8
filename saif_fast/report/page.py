"""The page: sections with figures in one HTML file, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from saif_fast.report.markup import Html, joined, raw, tag

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A figure of Plotly's, drawn by the page when it comes into view.

    A string that begins with ``--`` is the name of a colour of ``page.css``, for which the page
    puts in the colour of the light or the dark theme.

    Attributes:
        name: its file's name as a PNG, without the suffix.
        title: what it shows; in the PNG only.
        data: the traces, as Plotly's JSON. Text from outside is escaped, because Plotly reads tags.
        layout: the layout, as Plotly's JSON.
        height: height in CSS pixels.
    """

    name: str
    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int

    def element(self) -> Html:
        """Return the place where the figure is drawn, with its data."""
        shown = {"data": self.data, "layout": self.layout}
        return tag(
            "div",
            raw("script", json_for_script(shown), type="application/json"),
            tag("div", class_="plot", style=f"height:{self.height}px"),
            class_="figure",
            data_name=self.name,
        )


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        anchor: its id, which links name.
        title: its heading.
        body: its markup.
        figures: the figures in the body, for PNGs.
        summary: what the list of contents says of it.
        kind: ``good``, ``even`` or ``bad``, which colours its entry in that list; None = neither.
    """

    anchor: str
    title: str
    body: Html
    figures: Sequence[Figure] = field(default_factory=tuple)
    summary: str | Html = ""
    kind: str | None = None


def make_page(title: str, lead: Html, sections: Sequence[Section]) -> Html:
    """Make the page.

    Its policy allows only the scripts that are written here, by their hashes, and no request. So
    even text that had become markup could neither run nor load anything.

    Args:
        title: its title and heading.
        lead: what stands below the heading.
        sections: the sections; more of them may come from elsewhere, such as another kind of study.

    Raises:
        ValueError: there are figures, and plotly is not installed.

    Examples:
        >>> Path("report.html").write_text(make_page("Results", joined(), sections_of(document)))
    """
    entries = [
        tag("a", tag("b", s.title), s.summary, href=f"#{s.anchor}", class_=s.kind) for s in sections
    ]
    body = [
        tag("header", tag("h1", title), lead, tag("nav", entries, aria_label="contents")),
        tag(
            "main",
            [tag("section", tag("h2", s.title), s.body, id=s.anchor) for s in sections],
        ),
    ]
    return document(title, body, "page.js" if any(s.figures for s in sections) else None)


def document(title: str, body: Sequence[Html], script: str | None) -> Html:
    """Make an HTML document with our style, and with Plotly and one of our scripts if it is named.

    Examples:
        >>> document("Results", [tag("p", "text")], None)
    """
    scripts = [] if script is None else [plotly_js(), own("theme.js"), own(script)]
    allowed = " ".join(f"'sha256-{_digest(each)}'" for each in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        raw("style", own("page.css")),
    )
    drawn = tag("body", body, [raw("script", each) for each in scripts])
    return joined(Html("<!doctype html>\n"), tag("html", head, drawn, lang="en"))


def own(name: str) -> str:
    """Return the text of a file of this package."""
    return (_HERE / name).read_text(encoding="utf-8")


def plotly_js() -> str:
    """Return Plotly's script.

    Raises:
        ValueError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as missing:
        raise ValueError(
            "report: needs the package plotly; install it with: pip install 'saif-fast[report]'"
        ) from missing
    script: str = get_plotlyjs()
    return script


def json_for_script(value: Any) -> str:
    """Return JSON that cannot end a script element, whatever texts are in it."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
