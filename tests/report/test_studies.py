from __future__ import annotations

import re

import msgspec
import pytest
from made_up import SWEEP, document, studies, swept, task
from test_page import EVIL, Elements

from saif_fast.report import make_page
from saif_fast.report.documents import Document, page_lead, page_sections, page_title
from saif_fast.report.studies import claims_section, study_table
from saif_fast.report.study_figures import matrix_map, sweeps
from saif_fast.studies.result import Matrix, Share, StudyResult, Table

assert SWEEP.table is not None
TABLE = SWEEP.table


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saif_fast.report.page.plotly_js", lambda: "const Plotly = {};")


def page(*documents: Document) -> str:
    return make_page(page_title(documents), page_lead(documents), page_sections(documents))


def hostile() -> list[StudyResult]:
    """A sweep and a matrix in which everything that is text is hostile."""
    rows = [swept(EVIL, EVIL, k, 1, 2) for k in (1, 5)]
    return [
        StudyResult(
            EVIL,
            EVIL,
            "reproduced",
            EVIL,
            Table(["instruction", "what", EVIL, "strength", "follow", "sound"], rows),
            Matrix(EVIL, [EVIL], [EVIL], [[0.5]]),
            {EVIL: EVIL},
            {"model": EVIL},
        )
    ]


def test_studies_alone_have_a_summary_and_each_its_verdict_figures_table_and_origin() -> None:
    text = Elements(page(studies())).text
    for part in (
        "Instruction following of org/a-small-model, org/another",
        "5 studies of the paper's claims",
        "1 reproduced, 1 partly reproduced, 1 not reproduced, 1 undecided, 1 left out",
        "Partly reproduced on this model",
        "french: several are needed: yes; title: unclear",
        "a sentence of another form",
        "15/24 43–79 %",
        "0.123",
        "Share of replies",
        "solid: SAIF; dotted: SAIF, scaled",
        "Settings and origin",
        "12.3",
    ):
        assert part in text, part
    assert "0.12345" not in text


def test_the_summary_has_the_outcome_in_its_colour_and_a_long_verdict_in_brief() -> None:
    (section,) = page_sections([studies()])
    summary = section.body.partition("</table>")[0]
    found = re.findall(r'<span class="outcome (\w+)">([a-z ]+)</span>', summary)
    assert found == [
        ("even", "partly reproduced"),
        ("good", "reproduced"),
        ("bad", "not reproduced"),
        ("open", "undecided"),
        ("open", "left out"),
    ]
    assert "part 20; and 19 more<" in summary
    assert "<summary>34 more</summary>" in section.body  # of the 40 parts in full


def test_results_and_studies_are_on_one_page_whose_links_lead_somewhere() -> None:
    found = Elements(page(document(french=task()), studies()))
    assert "The paper's claims" in found.text and "Obedience against quality" in found.text
    ids = [value for name, value in found.attributes if name == "id"]
    links = {value for name, value in found.attributes if name == "href"}
    assert "#claims-specificity" in links
    assert len(ids) == len(set(ids)) and {(link or "")[1:] for link in links} <= set(ids)


def test_several_documents_of_a_kind_are_told_apart() -> None:
    documents = [document(french=task()), studies(), document(french=task()), studies()]
    sections = page_sections(documents)
    assert [each.title for each in sections if "claims" in each.anchor] == [
        "The paper's claims: org/a-small-model, org/another"
    ] * 2
    assert sections[0].title == "french: org/a-small-model"
    names = [figure.name for each in sections for figure in each.figures]
    assert len(names) == len(set(names))
    ids = [value for name, value in Elements(page(*documents)).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_study_without_anything_but_a_verdict_and_no_studies_have_a_page() -> None:
    assert "left out" in Elements(page([StudyResult("k", "c", None, "left out: x")])).text
    assert "0 studies" in Elements(page([])).text


def test_no_text_of_studies_becomes_markup() -> None:
    plain, found = Elements(page([SWEEP])), Elements(page(hostile()))
    assert "img" not in found.tags
    # Two figures, the sweep's and the matrix's, as the two sweeps of the other page.
    assert found.tags.count("script") == plain.tags.count("script")
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.text.count("alert(2)") > 10 and "<img" not in page(hostile())
    section = claims_section(hostile())
    assert len(section.figures) == 2
    for figure in section.figures:
        shown = msgspec.json.encode([figure.data, figure.layout, figure.title]).decode()
        assert "<img" not in shown and "<script" not in shown  # a cut label has no img
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", figure.name)


def test_a_sweep_has_a_figure_per_instruction_with_a_line_per_share_and_kind() -> None:
    figures = sweeps("claims-k", SWEEP)
    assert [each.name for each in figures.values()] == ["claims-k-french", "claims-k-title"]
    french = figures["french"]
    assert french.layout["xaxis"]["ticktext"] == [
        "1",
        "5",
        "15",
    ]
    assert [trace["name"] for trace in french.data] == [
        "SAIF: follow",
        "SAIF: sound",
        "SAIF, scaled: follow",
        "SAIF, scaled: sound",
    ]
    line = french.data[0]
    assert line["y"] == pytest.approx([1 / 24, 5 / 24, 15 / 24])
    last = Share.of(15, 24)
    assert line["error_y"]["array"][2] == pytest.approx(last.high - 15 / 24)
    assert line["error_y"]["arrayminus"][2] == pytest.approx(15 / 24 - last.low)
    assert len(french.data[2]["x"]) == 2  # that kind has no 15


@pytest.mark.parametrize(
    "result",
    [
        studies()[1],
        msgspec.structs.replace(SWEEP, study="beta"),
        msgspec.structs.replace(SWEEP, table=None),
        msgspec.structs.replace(SWEEP, table=Table(TABLE.columns, TABLE.rows[:2])),
    ],
    ids=["another study", "another setting", "no table", "one value"],
)
def test_what_is_no_sweep_has_no_lines(result: StudyResult) -> None:
    assert sweeps("x", result) == {}


def test_a_matrix_has_its_first_row_on_top_and_numbers_only_where_they_fit() -> None:
    few, many = (matrix_map("m", each.matrix) for each in studies()[1:3] if each.matrix)
    assert few.data[0]["z"] == [[0.625, None]] and few.data[0]["text"] == [["0.62", ""]]
    assert (few.data[0]["zmax"], many.data[0]["zmax"]) == (0.625, 1.0)
    assert "SAIF: french<br>title" in few.data[0]["customdata"][0][1]
    assert many.layout["yaxis"]["range"] == [19.5, -0.5]
    assert many.layout["xaxis"]["ticktext"][:2] == ["instruction 0", "instruction 2"]
    assert not any(text for line in many.data[0]["text"] for text in line)


def test_rows_of_an_instruction_are_below_its_name() -> None:
    text = study_table(TABLE)
    assert text.count('<tr class="group">') == 2 and text.count(">french<") == 1
    assert '<th scope="col">what</th>' in text and '<th scope="col">instruction</th>' not in text
