"""``saif report``: results as one HTML page, and its figures as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saif_fast.cli.app import out, say
from saif_fast.cli.loading import check_output
from saif_fast.evaluate.document import read_results
from saif_fast.report.evaluation import lead_of, sections_of, title_of
from saif_fast.report.page import make_page
from saif_fast.report.png import find_browser, write_pngs
from saif_fast.report.verdict import judge


def report(
    results: Annotated[
        Path,
        typer.Argument(help="What eval -o, demo, or identify --auto --results has written."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page to write, which needs nothing else.")
    ] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="A directory for the figures as PNG; needs Chromium.")
    ] = None,
) -> None:
    """Show results as one HTML page: verdicts, figures, tables, examples and their origin."""
    document = read_results(results)
    check_output(output)
    if png is not None:
        find_browser()  # refuse a missing one before anything is written
    sections = sections_of(document)
    output.write_text(make_page(title_of(document), lead_of(document), sections), encoding="utf-8")
    for name, task in document.tasks.items():
        out.print(f"{name}: {judge(task)}", markup=False, highlight=False, soft_wrap=True)
    say(f"wrote {output}")
    if png is not None:
        files = write_pngs([figure for each in sections for figure in each.figures], png)
        say(f"wrote {len(files)} figures to {png}")
