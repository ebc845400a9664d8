"""The page in a headless Chromium, and the PNG files that it draws."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browsing
from made_up import document, studies
from test_page import hostile
from test_studies import hostile as hostile_studies

from saif_fast.report import claims_section, make_page, sections_of, write_pngs
from saif_fast.report.documents import Document, page_lead, page_sections, page_title
from saif_fast.report.png import SCALE, WIDTH, find_browser

# It starts a browser. `.ci/run` installs one and sets SAIF_BROWSER.
pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def executable() -> str:
    try:
        return find_browser()
    except ValueError:
        missing = "no Chromium on the PATH: apt-get install chromium"
        if os.environ.get("SAIF_BROWSER") == "required":
            pytest.fail(f"{missing}; SAIF_BROWSER=required asks for it")
        pytest.skip(missing)


@pytest.fixture(scope="module")
def view(executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(executable, tmp_path_factory.mktemp("browser")) as found:
        yield found


def page(*documents: Document) -> str:
    return make_page(page_title(documents), page_lead(documents), page_sections(documents))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("page") / "report.html"
    written.write_text(page(document(), studies()))
    return written


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 380, 1200])
def test_the_page_is_drawn_whole_and_asks_for_nothing(
    view: Browser, file: Path, width: int, dark: bool
) -> None:
    view.open(file, width, dark=dark)
    sections = page_sections([document(), studies()])
    assert view.draw_all() == sum(len(each.figures) for each in sections) == 12
    assert view.evaluate("document.querySelectorAll('.plot .heatmaplayer image').length") == 8
    # Of eight methods in two tasks; of 3, 2 and 2 values of k for two shares.
    bars = "document.querySelectorAll('.plot .scatterlayer .errorbar').length"
    assert view.evaluate(bars) == 16 + 14
    # Nothing is wider than the view: tables scroll in their own boxes.
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate("innerWidth") == width
    assert view.complaints() == []
    assert view.requests() == [file.as_uri()]
    paper = view.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")
    assert paper == ("rgb(27, 31, 36)" if dark else "rgb(255, 255, 255)")


def test_a_wide_table_scrolls_in_its_box_on_a_phone(view: Browser, file: Path) -> None:
    view.open(file, 380)
    wider = "[...document.querySelectorAll('.scroll')].map(b => b.scrollWidth > b.clientWidth)"
    assert view.evaluate(wider)[:2] == [True, True]


def test_figures_take_the_other_theme_when_it_changes(view: Browser, file: Path) -> None:
    view.open(file, 380)
    view.draw_all()
    colour = "getComputedStyle(document.querySelector('.plot .ytick text')).fill"
    light = view.evaluate(colour)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    view.call("Emulation.setEmulatedMedia", features=dark)
    view.wait_for(f"{colour} !== '{light}'")
    assert view.evaluate(colour) == "rgb(232, 230, 225)"


def test_hostile_text_is_shown_and_runs_nothing(view: Browser, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(page(hostile(), hostile_studies()))
    view.open(file, 380)
    assert view.draw_all() == 4
    assert view.evaluate("document.querySelectorAll('main img, nav img').length") == 0
    assert "onerror=alert(2)" in view.evaluate("document.querySelector('.reply').textContent")
    assert view.evaluate("document.documentElement.scrollWidth") <= 380
    assert view.complaints() == [] and view.requests() == [file.as_uri()]


def test_even_text_that_became_markup_would_not_run(view: Browser, file: Path) -> None:
    view.open(file, 380)
    added = "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
    assert view.evaluate(f"{added} document.body.append(s); return window.ran ?? 0; }})()") == 0
    assert "Content Security Policy" in " ".join(view.complaints())


def test_each_figure_is_a_png_of_its_size(executable: str, tmp_path: Path) -> None:
    figures = [*sections_of(document())[0].figures, *claims_section(studies()).figures]
    files = write_pngs(figures, tmp_path / "png")
    assert [each.stem for each in files] == [figure.name for figure in figures]
    for png, figure in zip(files, figures, strict=True):
        data = png.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert (width, height) == (WIDTH * SCALE, (figure.height + 60) * SCALE)
        assert len(data) > 10_000  # not blank


def test_without_a_browser_png_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="expected Chromium or Chrome"):
        write_pngs(sections_of(document())[0].figures, tmp_path / "png")
