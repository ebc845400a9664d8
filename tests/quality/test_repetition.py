from __future__ import annotations

import pytest

from saif_fast.quality.repetition import repetition

LOOPS = {
    "word": "Il Il Il Il Il",
    "after a beginning": "La ville d'enfant est La La La La La La",
    "punctuation between": "Luna: Luna: Luna:",
    "within a word": "Leavenilsilversilversilversilversilver",
    "two sentences": "I do not know.\n\nShe may know it.\n\nI do not know.\n\nShe may know it.",
    "cut off within a word": "We sing a song. We sing a song. We sing a song. We si",
    "cut off in its third time": "We do not know this song. We do not know this song. We do n",
    "numbered items": "1. Friendship\n2. Friendship\n3. Friendship\n4. Friendship",
    "numbered steps": "Lighthouse: 1\nLighthouse: 2\nLighthouse: 3\nLighthouse: 4",
    "numbers": "1. 1. 1. 1. 1. 1. 1. 1.",
    "a script without spaces": "私は猫私は猫私は猫私は猫",
}
SOUND = {
    "prose": "Clouds form when warm air rises and cools. The water in it becomes small drops.",
    "a list": "1. Bread\n2. Butter\n3. A little salt\n4. Two eggs\n5. Some milk",
    "said twice": "The road is long, very very long, and no one knows where it ends.",
    "like beginnings": "It is old. It is large. It is cold in winter. It is full of people.",
    "one word": "Yes.",
    "another script": "猫は静かに庭を歩いている",
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_period_that_goes_on_to_the_end_is_a_loop(text: str) -> None:
    assert repetition(text).loop > 0.4


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
def test_sound_text_has_no_loop(text: str) -> None:
    distinct, loop = repetition(text)
    assert loop == 0.0
    assert distinct > 0.9


def test_the_loop_is_a_share_of_the_letters() -> None:
    assert repetition("one two three four: la la la la").loop == pytest.approx(8 / 23)
    assert repetition("la la la la one two three four five six").loop == 0.0, "it ended before"


def test_n_grams_that_occur_again_are_counted_once() -> None:
    # a b c, b c d, c d a, d a b, a b c, b c e: five of six differ
    assert repetition("a b c d a b c e").distinct == pytest.approx(5 / 6)
    assert repetition("A, b. C! (a) b c").distinct == pytest.approx(3 / 4), "case, punctuation"


@pytest.mark.parametrize("text", ["", " \n", "!!!", "12 34"])
def test_a_text_without_words_has_nothing_distinct(text: str) -> None:
    assert repetition(text) == (0.0, 0.0)
