from __future__ import annotations

import pytest

from saif_fast.tasks import Score
from saif_fast.tasks.embedded.scorers import AnyWordFrom, ExactTarget, Form, Repeated, WordsFrom
from saif_fast.tasks.scorers import Scorer, score_all
from saif_fast.tasks.verifiers import UpperCase

FULL, PART, NOT = Score(True, True), Score(False, True), Score(False, False)
FRENCH = frozenset("le chat dort ici".split())


@pytest.mark.parametrize(
    ("form", "reply", "expected"),
    [
        pytest.param(Repeated(), "Hi you. Hi you.", True, id="repeated"),
        pytest.param(Repeated(), "Hi. Hi. Hi.", False, id="repeated-too-often"),
        pytest.param(Repeated(), "Hi you. Hi me.", False, id="repeated-not"),
        pytest.param(Repeated(), "", False, id="repeated-empty"),
        pytest.param(WordsFrom(FRENCH), "Le chat dort ici.", True, id="vocabulary"),
        pytest.param(WordsFrom(FRENCH), "Le chat dort ici now", False, id="vocabulary-mostly"),
        pytest.param(WordsFrom(FRENCH), "Le chat", False, id="vocabulary-too-short"),
        pytest.param(AnyWordFrom(FRENCH, frozenset()), "The chat", True, id="any-word"),
        pytest.param(AnyWordFrom(FRENCH, frozenset({"the"})), "The chat", False, id="any-but"),
    ],
)
def test_forms_of_the_embedded_corpus(form: Form, reply: str, expected: bool) -> None:
    assert form(reply) == expected


def test_exact_target_is_strict_on_the_text_and_loose_on_the_form() -> None:
    scorer = ExactTarget(str.upper, UpperCase(least=2).holds)
    assert scorer("a cat", " A CAT\n") == FULL
    assert scorer("a cat", "A DOG") == PART
    assert scorer("a cat", "A Cat") == NOT


class Counting:
    """A scorer of many replies at once, strict where the reply is its content."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, content: str, reply: str) -> Score:
        raise AssertionError("one by one")

    def score_all(self, answers) -> list[Score]:
        self.calls += 1
        return [Score(content == reply, True) for content, reply in answers]


def test_a_scorer_of_many_replies_gets_them_at_once() -> None:
    scorer = Counting()
    assert score_all(scorer, [("a", "a"), ("a", "b")]) == [FULL, PART]
    assert scorer.calls == 1


def test_a_function_is_a_scorer() -> None:
    def polite(content: str, reply: str) -> Score:
        return Score(reply.endswith("please."), "please" in reply)

    scorer: Scorer = polite
    assert score_all(scorer, [("", "Come in, please."), ("", "No")]) == [FULL, NOT]
