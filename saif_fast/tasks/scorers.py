"""Rule-based scorers: strict = the reply fully does what was asked, loose = it does so in part.

A scorer is any callable of (content, reply): write your own as a function or a small frozen
dataclass. These take a reply as it was generated, and ignore white space around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class Score(NamedTuple):
    """The score of a reply: whether it does what was asked fully, and at least in part."""

    strict: bool
    loose: bool


class Scorer(Protocol):
    """A judge of one reply to one content."""

    def __call__(self, content: str, reply: str) -> Score:
        """Score ``reply`` as an answer to ``content``."""


def words(text: str) -> list[str]:
    """Return the words of a text, without punctuation."""
    return _WORD.findall(text)


@dataclass(frozen=True)
class ExactTarget:
    """Strict: the reply is ``target(content)``. Loose: ``form`` holds fully, whatever is said."""

    target: Callable[[str], str]
    form: Scorer

    def __call__(self, content: str, reply: str) -> Score:
        exact = reply.strip() == self.target(content)
        return Score(exact, exact or self.form(content, reply).strict)


@dataclass(frozen=True)
class JsonObject:
    """Strict: the reply is one JSON object with ``keys``. Loose: it contains a JSON object."""

    keys: tuple[str, ...] = ()

    def __call__(self, content: str, reply: str) -> Score:
        text = reply.strip()
        for start in (i for i, character in enumerate(text) if character == "{"):
            try:
                value, end = json.JSONDecoder().raw_decode(text, start)
            except json.JSONDecodeError:
                continue
            return Score(start == 0 and end == len(text) and value.keys() >= set(self.keys), True)
        return Score(False, False)


@dataclass(frozen=True)
class UpperCase:
    """Strict: there are letters, none lower case. Loose: ``share`` of them is upper case."""

    share: float = 0.8

    def __call__(self, content: str, reply: str) -> Score:
        letters = [character for character in reply if character.isalpha()]
        upper = sum(character.isupper() for character in letters)
        lower = sum(character.islower() for character in letters)
        return Score(upper > 0 and lower == 0, upper > 0 and upper >= self.share * len(letters))


@dataclass(frozen=True)
class Matches:
    """Strict: the whole reply matches ``pattern``. Loose: a part of it does, in any case."""

    pattern: str

    def __call__(self, content: str, reply: str) -> Score:
        return Score(
            re.fullmatch(self.pattern, reply.strip()) is not None,
            re.search(self.pattern, reply, re.IGNORECASE) is not None,
        )


@dataclass(frozen=True)
class Contains:
    """Strict: ``text`` occurs as whole words, in any case. Loose: it occurs within words."""

    text: str

    def __call__(self, content: str, reply: str) -> Score:
        escaped = re.escape(self.text)
        return Score(
            re.search(rf"(?<!\w){escaped}(?!\w)", reply, re.IGNORECASE) is not None,
            re.search(escaped, reply, re.IGNORECASE) is not None,
        )


@dataclass(frozen=True)
class MaxWords:
    """Strict: the reply has one to ``limit`` words. Loose: up to twice as many."""

    limit: int

    def __call__(self, content: str, reply: str) -> Score:
        count = len(words(reply))
        return Score(1 <= count <= self.limit, 1 <= count <= 2 * self.limit)


@dataclass(frozen=True)
class Repeated:
    """Strict: the reply is one text, exactly ``times`` times. Loose: two to eight times."""

    times: int = 2

    def __call__(self, content: str, reply: str) -> Score:
        said = reply.split()
        return Score(_periods(said, self.times), any(_periods(said, n) for n in range(2, 9)))


@dataclass(frozen=True)
class WordsFrom:
    """Strict: ``least`` words or more, all in ``vocabulary`` (lower case). Loose: ``share`` are."""

    vocabulary: frozenset[str] = field(repr=False)
    least: int = 4
    share: float = 0.8

    def __call__(self, content: str, reply: str) -> Score:
        said = words(reply.lower())
        known = sum(word in self.vocabulary for word in said)
        enough = len(said) >= self.least
        return Score(enough and known == len(said), enough and known >= self.share * len(said))


@dataclass(frozen=True)
class AnyWordFrom:
    """Strict and loose: a word or more of ``vocabulary`` (lower case), none of ``without``."""

    vocabulary: frozenset[str] = field(repr=False)
    without: frozenset[str] = field(default=frozenset(), repr=False)

    def __call__(self, content: str, reply: str) -> Score:
        said = set(words(reply.lower()))
        holds = bool(said & self.vocabulary) and not said & self.without
        return Score(holds, holds)


def _periods(said: list[str], times: int) -> bool:
    """Return whether ``said`` is one non-empty list of words, ``times`` times over."""
    length = len(said) // times
    return length > 0 and said == said[:length] * times
