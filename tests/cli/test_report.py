from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from saif_fast.evaluate.document import write_results
from saif_fast.studies.result import write_studies

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from made_up import document, studies, task


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "results.json"
    write_results(document(french=task()), file)
    return file


def test_report_writes_one_page_and_prints_the_verdict(saif, results: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "report.html"
    done = saif("report", results, "-o", output)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("french: The prompt does a little better, but that may be chance")
    page = output.read_text()
    assert page.startswith("<!doctype html>") and "Plotly" in page and "Un volcan est" in page
    assert [file.name for file in output.parent.iterdir()] == ["report.html"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.json"
    write_studies(studies(), file)
    return file


def test_report_shows_results_and_studies_on_one_page_and_prints_both_verdicts(
    saif, results: Path, study: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    done = saif("report", results, study, "-o", output)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("french: The prompt does a little better")
    assert "\nspecificity: reproduced on this model: own 15/24\n" in done.stdout
    page = output.read_text()
    assert "Un volcan est" in page and "The paper&#x27;s claims" in page


def test_studies_alone_are_a_page(saif, study: Path, tmp_path: Path) -> None:
    done = saif("report", study, "-o", tmp_path / "report.html")
    assert done.exit_code == 0, done.stderr
    assert "They steer to their own instruction." in (tmp_path / "report.html").read_text()


def test_without_plotly_report_says_what_to_install(
    saif, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    done = saif("report", results, "-o", tmp_path / "report.html")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("install it with: pip install 'saif-fast[report]'\n")
    assert not (tmp_path / "report.html").exists()


def test_a_page_without_figures_needs_no_plotly(
    saif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    rows = {
        method: msgspec.structs.replace(row, quality=None, both=None, score=None)
        for method, row in task().rows.items()
    }
    bare = msgspec.structs.replace(task(), rows=rows, tried=[])
    write_results(document(french=bare), tmp_path / "results.json")
    done = saif("report", tmp_path / "results.json", "-o", tmp_path / "report.html")
    assert done.exit_code == 0, done.stderr


def test_png_without_a_browser_is_refused_before_anything_is_written(
    saif, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = saif("report", results, "-o", tmp_path / "report.html", "--png", tmp_path / "png")
    assert done.exit_code == 1 and "apt-get install chromium" in done.stderr
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected results of saif eval"),
        ("[]", "expected results of saif eval"),
        ("{}", "expected results of saif eval"),
        ('{"french": {}}', "expected results of saif eval"),
        ('{"format": 9}', "expected results of saif eval"),
        (b"\xff", "expected results of saif eval"),
        ('{"format": 9, "tasks": {}}', "expected results of saif eval"),
        ('{"format": 9, "results": []}', "expected format 1, got 9"),
        ('{"format": 1, "results": [{}]}', "expected the results of studies"),
        (None, "No such file"),
    ],
)
def test_another_file_is_refused_in_one_sentence_even_beside_a_right_one(
    saif, study: Path, tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = saif("report", study, file, "-o", tmp_path / "report.html")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {file}: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
