"""``saif report``: results and studies as one HTML page, and its figures as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saif_fast.cli.app import out, say
from saif_fast.cli.loading import check_output
from saif_fast.evaluate.document import ResultsDocument
from saif_fast.report.documents import Document, page_lead, page_sections, page_title, read_document
from saif_fast.report.page import make_page
from saif_fast.report.png import find_browser, write_pngs
from saif_fast.report.verdict import judge


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="What eval -o, demo, identify --auto --results or study -o has written.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page to write, which needs nothing else.")
    ] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="A directory for the figures as PNG; needs Chromium.")
    ] = None,
) -> None:
    """Show results and studies as one HTML page: verdicts, figures, tables and their origin."""
    documents = [read_document(file) for file in files]
    check_output(output)
    if png is not None:
        find_browser()  # refuse a missing one before anything is written
    sections = page_sections(documents)
    page = make_page(page_title(documents), page_lead(documents), sections)
    output.write_text(page, encoding="utf-8")
    for document in documents:
        for line in _verdicts(document):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    say(f"wrote {output}")
    if png is not None:
        written = write_pngs([figure for each in sections for figure in each.figures], png)
        say(f"wrote {len(written)} figures to {png}")


def _verdicts(document: Document) -> list[str]:
    if isinstance(document, ResultsDocument):
        return [f"{name}: {judge(task)}" for name, task in document.tasks.items()]
    return [f"{result.study}: {result.verdict}" for result in document]
