"""Each verifier on replies that follow its instruction, and on replies that only seem to."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from saif_fast.tasks import Score
from saif_fast.tasks.verifiers import (
    AnyVerifier,
    Bullets,
    Contains,
    EndsWithQuestion,
    Json,
    Lacks,
    Language,
    LowerCase,
    Matches,
    NumberedList,
    PastTense,
    Quoted,
    Sentences,
    Separated,
    Title,
    UpperCase,
    Verified,
    Verifier,
    WordCount,
    variants,
)

RULES: list[tuple[Verifier, list[str], list[str]]] = [
    (
        Language("fr"),
        [
            "La pluie tombe quand l'air est froid.",
            "Cela est un bon amière, c'est un bon ami et un bon homme.",  # a small model's French
            "Pour faire un bon thé, il faut chauffer l'eau jusqu'à",
            "Je suis le couleur de la maison.\n\n" * 5,  # a loop, but in French
        ],
        [
            "Rain falls when the air is cold.",
            "Je suis un modèle de langage, and I can help you with that question.",
            "The rain falls. Il pleut quand l'air est froid et humide.",
            "La lluvia cae cuando el aire está frío.",
            "La pioggia cade quando l'aria è fredda.",
            "Il Il Il Il Il Il Il Il",
            "la ville et la ville et la ville et la ville et la ville",
            "Leap-year: le décepciel le décepciel le décepciel",
            "Oui.",
        ],
    ),
    (
        Language("de"),
        ["Regen fällt, wenn die Luft kalt ist.", "Elefanten sind die größten Landtiere und leben"],
        ["Rain falls when the air is cold.", "De regen valt als de lucht koud is.", "Ja, nein."],
    ),
    (
        Language("es"),
        ["La lluvia cae cuando el aire está frío.", "Los perros mueven la cola porque están"],
        ["A chuva cai quando o ar está frio.", "La pluie tombe quand l'air est froid."],
    ),
    (
        LowerCase(),
        ["rain falls when it is cold.", "l'été est là, enfin"],
        ["Rain falls when it is cold.", "1, 2, 3, 4", "rain", "rain falls on Monday"],
    ),
    (
        UpperCase(),
        ["RAIN FALLS IN 2 WAYS.", "L'ÉTÉ EST LÀ, ENFIN"],
        ["RAIN FALLS IN 2 ways.", "1, 2, 3, 4", "NO", "Rain Falls In Spring"],
    ),
    (
        NumberedList(),
        [
            "1. Rain\n2. Snow",
            "Here it is:\n\n1) Rain\n\n2) Snow\n3)",
            "1. **Rain**: water\n   - cold\n2. **Snow**: ice",
            "**1.** Rain\n**2.** Snow",
        ],
        [
            "1. Rain",
            "Take 1. rain and 2. snow.",
            "2. Rain\n3. Snow",
            "1. Rain\n1. Snow",
            "1. Rain\n2. Rain\n3. Rain",
            "1. \n2. \n3. ",
            "1. 1.1.1.1",
            "- Rain\n- Snow",
        ],
    ),
    (
        Bullets(),
        ["- Rain\n- Snow", "* Rain\n* Snow\n* ", "Two:\n• Rain\n  • Snow", "- **Rain**\n- **Sn"],
        ["- Rain", "Rain - snow - ice", "- Rain\n- Rain", "-\n-\n", "1. Rain\n2. Snow", "**Rain**"],
    ),
    (
        Json(),
        ['{"answer": "Rain."}', '```json\n{"a": [1, "b"]}\n```', ' {"a": {"b": 2}}\n'],
        [
            '{"answer": "Rain',
            'Sure: {"answer": "Rain."}',
            '{"answer": "Rain."} That is all.',
            '["Rain"]',
            "{}",
            '{"answer": ""}',
            "{'answer': 'Rain.'}",
            '"Rain"',
            "NaN",
        ],
    ),
    (
        Json(cut=True),
        ['{"answer": "Rain', '{"a": "Rain", "b', '```json\n{"a": ["Rain", "Sn', '{"a": "b"}'],
        ["{", '{"answer', '{"answer": "', '{"a": "b"} Rain', "{Rain", '{"a" "b', "Rain"],
    ),
    (
        Sentences(),
        [
            "Rain falls when it is cold.",
            "It rains at 3.5 degrees, e.g. in May!",
            "1. Rain falls when it is cold.",
            "Dr. Mary J. Smith likes the rain.",
            '**"Rain falls when it is cold."**',
        ],
        [
            "Rain falls when it is cold, and then",
            "Rain falls. Snow falls too.",
            "Rain falls when it is cold.\nIt is wet",
            "Rain.",
            "...",
        ],
    ),
    (Sentences(count=2), ["Rain falls here. Snow falls there!"], ["Rain falls when it is cold."]),
    (
        WordCount(least=3, most=5),
        ["Rain falls here.", "It doesn't rain here today."],
        ["Rain.", "It does not rain here today.", "... !!! ???"],
    ),
    (WordCount(least=6), ["It does not rain here today."], ["rain " * 5]),
    (
        Contains(("umbrella", "rain coat")),
        ["Take an Umbrella.", "a RAIN COAT, please"],
        ["umbrellas", "a raincoat", "rain"],
    ),
    (
        Lacks(","),
        ["Rain falls when the air is cold and wet."],
        ["Rain falls, when the air is cold and wet.", "Rain falls."],
    ),
    (Matches(r"\d+ cats"), ["I saw 12 cats."], ["I saw cats.", "I saw 12 Cats."]),
    (
        Quoted(),
        [
            '"Rain falls when it is cold."',
            "“Rain falls.”",
            "« La pluie tombe. »",
            "„Regen fällt.“",
            '"He said "rain" to me."',
            '"Rain falls when it is cold and',
        ],
        [
            "Rain falls.",
            '"Rain" falls.',
            '"Rain" is a "word"',
            '"Rain" falls when the air is',
            '"Rain falls. It is cold.',
            '"',
            '""',
            "'Rain falls.'",
        ],
    ),
    (
        EndsWithQuestion(),
        ["Rain falls. Do you like it?", 'It rains. "**Do you like it?**"\n', "Rain.\nWhy?"],
        ["Do you like it? Rain falls.", "?", "How to make pancakes?", "Rain falls. Do you"],
    ),
    (
        Title(),
        ["<<Rain>>\nIt falls.", "It falls. << On Rain >>", "<<Rain>> It fal"],
        [
            "<<Rain>>",
            "<<>> It falls.",
            "<Rain> It falls.",
            "<<Rain\nIt falls.>>",
            "<<Rain It falls.",
        ],
    ),
    (
        PastTense(),
        [
            "Rain fell, and people carried umbrellas.",
            "He was cold and walked home.",
            "Bach wasn't rich. He composed and taught",
            "It transformed the way people lived, worked and used to think",
        ],
        [
            "Rain falls when it is cold.",
            "It was cold, and it is cold.",
            "He ran.",
            "Red feed seed.",
        ],
    ),
    (
        Separated(),
        ["Rain.\n******\nSnow.", "Rain ****** Snow", "******\nRain\n******\nSnow"],
        ["Rain.", "Rain ******", "Rain ****** rain", "Rain *** Snow", "a ****** b ****** c"],
    ),
]
CASES = [
    pytest.param(rule, reply, passes, id=f"{rule.__struct_config__.tag}-{passes}-{reply[:30]!r}")
    for rule, passing, failing in RULES
    for passes, replies in ((True, passing), (False, failing))
    for reply in replies
]


@pytest.mark.parametrize(("rule", "reply", "passes"), CASES)
def test_what_passes(rule: Verifier, reply: str, passes: bool) -> None:
    assert rule.holds(reply) == passes


def test_every_verifier_has_cases() -> None:
    assert {type(rule) for rule, _, _ in RULES} == set(get_args(AnyVerifier))


@pytest.mark.parametrize("reply", ["", " \n ", "...", "****", "?", "😀"])
@pytest.mark.parametrize("rule", [rule for rule, _, _ in RULES], ids=str)
def test_a_reply_without_words_never_passes(rule: Verifier, reply: str) -> None:
    assert Verified(rule, ())("Content.", reply) == Score(False, False)


def test_variants_are_those_of_ifeval() -> None:
    assert set(variants("Sure:\n*a* b\nBye")) == {
        "Sure:\n*a* b\nBye",
        "*a* b\nBye",
        "Sure:\n*a* b",
        "*a* b",
        "Sure:\na b\nBye",
        "a b\nBye",
        "Sure:\na b",
        "a b",
    }


@pytest.mark.parametrize(
    ("rule", "reply", "expected"),
    [
        (Json(), 'Sure:\n{"a": "b"}\nBye', Score(False, True)),
        (LowerCase(), "Here You Are:\nrain falls when it is cold", Score(False, True)),
        (Quoted(), '*"Rain falls."*', Score(False, True)),
        (UpperCase(), "Rain\nsnow", Score(False, False)),
    ],
)
def test_loose_is_any_variant(rule: Verifier, reply: str, expected: Score) -> None:
    assert Verified(rule, ())("", reply) == expected


@pytest.mark.parametrize(
    ("rule", "reply", "strict"),
    [
        (Contains(("umbrella",)), 'Use the  word "UMBRELLA" in your answer.', False),
        (Contains(("umbrella",)), 'Use the word "umbrella" in your answer. My umbrella.', True),
        (EndsWithQuestion(), "What is rain? What is rain?", False),
        (EndsWithQuestion(), "What is rain? Rain is water. Is it not?", True),
        (Title(), "<<What is rain?>>\nRain is water.", True),
        (Title(), "<<What is rain?>>\nWhat is rain?", False),
        (UpperCase(), "WHAT IS RAIN?", False),
        (UpperCase(), "WHAT IS RAIN? RAIN IS WATER.", True),
    ],
)
def test_an_echo_of_instruction_or_content_does_not_count(
    rule: Verifier, reply: str, strict: bool
) -> None:
    scorer = Verified(rule, ('Use the word "umbrella" in your answer.',))
    assert scorer("What is rain?", reply).strict == strict


def test_kinds_are_distinct_and_chosen_by_name() -> None:
    kinds = [rule.__struct_config__.tag for rule in get_args(AnyVerifier)]
    assert len(set(kinds)) == len(kinds)
    chosen = msgspec.convert({"kind": "word_count", "most": 9}, AnyVerifier)
    assert chosen == WordCount(most=9)
