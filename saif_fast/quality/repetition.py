"""Repetition in a text: distinct n-grams, and a period that is repeated up to the text's end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

NGRAM = 3  # words
# A word, or one character of a script that has no spaces between words. Numbers are no words,
# because "Step 1: rest. Step 2: rest." says one thing twice.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+(?:['’-][^\W\d_]+)*")
_TIMES, _TIMES_LONG = 3, 2  # a period is a loop from this time on
_LONG = 16  # letters of a long period, about four words


class Repetition(NamedTuple):
    """How much a text repeats itself.

    Attributes:
        distinct: number of different n-grams of :data:`NGRAM` words over the number of all; 1 where
            none occurs twice, 0 for a text without words.
        loop: share of the text's letters, 0 to 1, that its loop covers. A loop is a period that is
            repeated to the text's end: at least three times, or twice if it is long.
    """

    distinct: float
    loop: float


def repetition(text: str) -> Repetition:
    """Measure how much ``text`` repeats itself; case, punctuation and numbers do not count.

    Examples:
        >>> repetition("1. Friendship\\n2. Friendship\\n3. Friendship")
        Repetition(distinct=1.0, loop=1.0)
    """
    lower = text.lower()
    said = _WORD.findall(lower)
    n = min(NGRAM, len(said))
    ngrams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)] if said else []
    # Of letters, because a reply is often cut off within a word, and "auauau" is a loop as well.
    letters = [character for character in lower if character.isalpha()]
    with_digits = [character for character in lower if character.isalnum()]  # of "1. 1. 1."
    return Repetition(
        distinct=len(set(ngrams)) / len(ngrams) if ngrams else 0.0,
        loop=max(_looping_share(letters), _looping_share(with_digits)),
    )


def _looping_share(items: Sequence[str]) -> float:
    """Return the length of the longest loop at the end of ``items``, over their number."""
    longest = 0
    for period in range(1, len(items) // 2 + 1):
        length = period
        while length < len(items) and items[-1 - length] == items[-1 - length + period]:
            length += 1
        if length >= period * (_TIMES_LONG if period >= _LONG else _TIMES):
            longest = max(longest, length)
    return longest / max(1, len(items))
