"""PNG files of figures, drawn by a Chromium that is installed."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from saif_fast.report.markup import raw, tag
from saif_fast.report.page import Figure, document, json_for_script

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH = 900  # of a figure, in CSS pixels
SCALE = 2  # pixels of the file per CSS pixel
_SECONDS = 300
_DRAWN = re.compile(r'<img data-name="([^"]+)" src="data:image/png;base64,([^"]+)">')


def find_browser() -> str:
    """Return the path of the first browser of :data:`BROWSERS` that is installed.

    Raises:
        ValueError: none is.
    """
    for name in BROWSERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise ValueError(
        "--png: expected Chromium or Chrome, which draws the figures, got none on the PATH; "
        "install one (Debian: apt-get install chromium), or leave --png out"
    )


def write_pngs(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write each figure as ``NAME.png``, in the colours of the light theme.

    Args:
        figures: the figures.
        folder: where the files go; it is made.

    Returns:
        The files, in the order of the figures.

    Raises:
        ValueError: no browser or no plotly is installed, or not all figures were drawn.

    Examples:
        >>> write_pngs([figure for each in sections for figure in each.figures], Path("figures"))
    """
    browser = find_browser()
    folder.mkdir(parents=True, exist_ok=True)
    if not figures:
        return []
    shown = [
        {"name": f.name, "title": f.title, "data": f.data, "layout": f.layout, "height": f.height}
        for f in figures
    ]
    settings = {"figures": shown, "width": WIDTH, "scale": SCALE}
    data = raw("script", json_for_script(settings), type="application/json")
    with tempfile.TemporaryDirectory(prefix="saif-report-") as made:
        file = Path(made, "figures.html")
        file.write_text(document("figures", [tag("div", data, id="figures")], "png.js"))
        drawn = dict(_DRAWN.findall(_dom(browser, file, Path(made))))
    missing = [figure.name for figure in figures if figure.name not in drawn]
    if missing:
        raise ValueError(f"--png: {browser} did not draw {', '.join(missing)}")
    files = []
    for figure in figures:
        files.append(folder / f"{figure.name}.png")
        files[-1].write_bytes(base64.b64decode(drawn[figure.name]))
    return files


def _dom(browser: str, file: Path, home: Path) -> str:
    """Return the document's markup after its script ran."""
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # root has none, and the page is our own
        "--disable-gpu",
        "--disable-dev-shm-usage",  # which is small in containers
        f"--user-data-dir={home / 'profile'}",
        "--virtual-time-budget=600000",  # waits for the figures, however slow the machine
        "--dump-dom",
        file.as_uri(),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True, encoding="utf-8"
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise ValueError(f"--png: {browser} failed: {error}") from error
    return done.stdout
