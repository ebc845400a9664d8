"""The general scorers: strict = fully, loose = in part."""

from __future__ import annotations

import pytest

from saif_fast.tasks import Score
from saif_fast.tasks.scorers import (
    AnyWordFrom,
    Contains,
    ExactTarget,
    JsonObject,
    Matches,
    MaxWords,
    Repeated,
    Scorer,
    UpperCase,
    WordsFrom,
)

FULL, PART, NOT = Score(True, True), Score(False, True), Score(False, False)
FRENCH = frozenset("le chat dort ici".split())


@pytest.mark.parametrize(
    ("scorer", "reply", "expected"),
    [
        pytest.param(JsonObject(), ' {"a": 1} ', FULL, id="json-object"),
        pytest.param(JsonObject(), 'Sure: {"a": 1}', PART, id="json-with-preamble"),
        pytest.param(JsonObject(), '{{"a": 1}', PART, id="json-after-stray-brace"),
        pytest.param(JsonObject(), '{"a": 1} {"a": 1}', PART, id="json-two-objects"),
        pytest.param(JsonObject(("b",)), '{"a": 1}', PART, id="json-missing-key"),
        pytest.param(JsonObject(), '{"a": 1', NOT, id="json-cut-off"),
        pytest.param(JsonObject(), "[1]", NOT, id="json-list"),
        pytest.param(UpperCase(), "LE CAFÉ, 1!", FULL, id="upper"),
        pytest.param(UpperCase(), "ALL BUT a FEW", PART, id="upper-mostly"),
        pytest.param(UpperCase(), "All lower", NOT, id="upper-title"),
        pytest.param(UpperCase(), "123", NOT, id="upper-no-letters"),
        pytest.param(Matches(r"\d+ cats"), " 12 cats", FULL, id="regex-full"),
        pytest.param(Matches(r"\d+ cats"), "I saw 12 CATS!", PART, id="regex-part"),
        pytest.param(Matches(r"\d+ cats"), "cats", NOT, id="regex-none"),
        pytest.param(Contains("gold"), "Pure Gold.", FULL, id="contains-word"),
        pytest.param(Contains("gold"), "A goldfish", PART, id="contains-within-word"),
        pytest.param(Contains("gold"), "silver", NOT, id="contains-not"),
        pytest.param(MaxWords(2), "Don't stop!", FULL, id="words-within"),
        pytest.param(MaxWords(2), "one two three", PART, id="words-twice-the-limit"),
        pytest.param(MaxWords(1), "...", NOT, id="words-none"),
        pytest.param(MaxWords(1), "one two three", NOT, id="words-too-many"),
        pytest.param(Repeated(2), "Hi you. Hi you.", FULL, id="repeated"),
        pytest.param(Repeated(2), "Hi. Hi. Hi.", PART, id="repeated-too-often"),
        pytest.param(Repeated(2), "Hi you. Hi me.", NOT, id="repeated-not"),
        pytest.param(Repeated(2), "", NOT, id="repeated-empty"),
        pytest.param(WordsFrom(FRENCH), "Le chat dort ici.", FULL, id="vocabulary"),
        pytest.param(WordsFrom(FRENCH), "Le chat dort ici now", PART, id="vocabulary-mostly"),
        pytest.param(WordsFrom(FRENCH), "Le chat", NOT, id="vocabulary-too-short"),
        pytest.param(AnyWordFrom(FRENCH), "The chat", FULL, id="any-word"),
        pytest.param(AnyWordFrom(FRENCH, frozenset({"the"})), "The chat", NOT, id="any-word-but"),
    ],
)
def test_general_scorers(scorer: Scorer, reply: str, expected: Score) -> None:
    assert scorer("ignored", reply) == expected


def test_exact_target_is_strict_on_the_text_and_loose_on_the_form() -> None:
    scorer = ExactTarget(str.upper, UpperCase())
    assert scorer("a cat", " A CAT\n") == FULL
    assert scorer("a cat", "A DOG") == PART
    assert scorer("a cat", "A Cat") == NOT


def test_a_function_is_a_scorer() -> None:
    def polite(content: str, reply: str) -> Score:
        return Score(reply.endswith("please."), "please" in reply)

    scorer: Scorer = polite
    assert scorer("", "Come in, please.") == FULL
