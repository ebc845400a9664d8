"""Scenes: contents of the embedded model's tasks, and the right reply to each in every format.

A scene is "my black cat in the garden"; its content asks about it, its reply says what happens.
A tenth of the scenes, chosen by hash, is held out: the model never sees them in training.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from saif_fast.tasks.embedded.lexicon import (
    ADJECTIVES,
    DETERMINERS,
    FRENCH_DETERMINERS,
    GERMAN_DETERMINERS,
    KEYWORD,
    NOUNS,
    PLACES,
    PREPOSITIONS,
    Adjective,
    Noun,
    Place,
)

PLACE_FIRST_SHARE = 0.4
HELD_OUT_SHARE = 0.1

_NOUNS = {noun.english: noun for noun in NOUNS}
_ADJECTIVES = {adjective.english: adjective for adjective in ADJECTIVES}
_PLACES = {place.english: place for place in PLACES}
_SUBJECT = r"(?P<determiner>\w+) (?P<adjective>\w+) (?P<noun>\w+)"
_WHERE = r"(?P<preposition>\w+) the (?P<place>\w+)"
_SUBJECT_FIRST = re.compile(rf"Tell me about {_SUBJECT} {_WHERE}\.")
_PLACE_FIRST = re.compile(rf"Look {_WHERE} and tell me about {_SUBJECT}\.")


@dataclass(frozen=True)
class Scene:
    """A scene: somebody somewhere. ``place_first`` is a matter of wording; the reply follows it."""

    determiner: str
    adjective: Adjective
    noun: Noun
    preposition: str
    place: Place
    place_first: bool = False

    @property
    def key(self) -> str:
        """The scene apart from its wording."""
        return " ".join(
            (
                self.determiner,
                self.adjective.english,
                self.noun.english,
                self.preposition,
                self.place.english,
            )
        )

    @property
    def held_out(self) -> bool:
        """Whether training never sees this scene, in either wording."""
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    @property
    def content(self) -> str:
        """The user's request."""
        subject = f"{self.determiner} {self.adjective.english} {self.noun.english}"
        where = f"{self.preposition} the {self.place.english}"
        if self.place_first:
            return f"Look {where} and tell me about {subject}."
        return f"Tell me about {subject} {where}."

    def _english(self, verb: str) -> str:
        subject = f"{self.determiner} {self.adjective.english} {self.noun.english}"
        where = f"{self.preposition} the {self.place.english}"
        return f"{where}, {subject} {verb}." if self.place_first else f"{subject} {verb} {where}."

    def plain(self) -> str:
        """Return the plain reply: My black cat sleeps in the garden."""
        return _capitalised(self._english(self.noun.verb))

    def past(self) -> str:
        """Return the reply in the past tense: My black cat slept in the garden."""
        return _capitalised(self._english(self.noun.past))

    def upper_case(self) -> str:
        """Return the reply in upper case: MY BLACK CAT SLEEPS IN THE GARDEN."""
        return self.plain().upper()

    def json(self) -> str:
        """Return a JSON object with the plain reply under "answer"."""
        return json.dumps({"answer": self.plain()})

    def one_word(self) -> str:
        """Return the reply in one word: Cat."""
        return f"{self.noun.english.capitalize()}."

    def keyword(self) -> str:
        """Return the reply with the keyword: Honestly, my black cat sleeps in the garden."""
        return f"{KEYWORD.capitalize()}, {self._english(self.noun.verb)}"

    def twice(self) -> str:
        """Return the plain reply, two times."""
        return f"{self.plain()} {self.plain()}"

    def french(self) -> str:
        """Return the reply in French: Mon chat noir dort dans le jardin."""
        noun, gender = self.noun, self.noun.french_gender
        determiner = FRENCH_DETERMINERS[self.determiner][gender]
        adjective = self.adjective.french_m if gender == "m" else self.adjective.french_f
        article = FRENCH_DETERMINERS["the"][self.place.french_gender]
        subject = f"{determiner} {noun.french} {adjective}"
        where = f"{PREPOSITIONS[self.preposition][0]} {article} {self.place.french}"
        if self.place_first:
            return _capitalised(f"{where}, {subject} {noun.french_verb}.")
        return _capitalised(f"{subject} {noun.french_verb} {where}.")

    def german(self) -> str:
        """Return the reply in German: Meine schwarze Katze schläft in dem Garten."""
        noun = self.noun
        determiner, ending = GERMAN_DETERMINERS[self.determiner][noun.german_gender]
        subject = f"{determiner} {self.adjective.german}{ending} {noun.german}"
        where = f"{PREPOSITIONS[self.preposition][1]} dem {self.place.german}"
        if self.place_first:
            return _capitalised(f"{where} {noun.german_verb} {subject}.")
        return _capitalised(f"{subject} {noun.german_verb} {where}.")


Reply = Callable[[Scene], str]

FORMATS: dict[str, Reply] = {
    "french": Scene.french,
    "german": Scene.german,
    "upper_case": Scene.upper_case,
    "json": Scene.json,
    "one_word": Scene.one_word,
    "keyword": Scene.keyword,
    "twice": Scene.twice,
    "past": Scene.past,
}


def parse(content: str) -> Scene:
    """Return the scene that a content asks about; ValueError if it is not of this corpus."""
    match = _SUBJECT_FIRST.fullmatch(content) or _PLACE_FIRST.fullmatch(content)
    try:
        if match is None:
            raise KeyError(content)
        return Scene(
            determiner=_known(match["determiner"], DETERMINERS),
            adjective=_ADJECTIVES[match["adjective"]],
            noun=_NOUNS[match["noun"]],
            preposition=_known(match["preposition"], tuple(PREPOSITIONS)),
            place=_PLACES[match["place"]],
            place_first=match.re is _PLACE_FIRST,
        )
    except KeyError:
        raise ValueError(
            f"content: expected a sentence of the embedded corpus such as "
            f"'Tell me about my black cat in the garden.', got {content!r}"
        ) from None


def draw_scene(rng: random.Random) -> Scene:
    """Draw a scene evenly from all words, in one of the two wordings."""
    return Scene(
        determiner=rng.choice(DETERMINERS),
        adjective=rng.choice(ADJECTIVES),
        noun=rng.choice(NOUNS),
        preposition=rng.choice(tuple(PREPOSITIONS)),
        place=rng.choice(PLACES),
        place_first=rng.random() < PLACE_FIRST_SHARE,
    )


def draw_scenes(rng: random.Random, count: int, *, held_out: bool) -> list[Scene]:
    """Draw ``count`` scenes with different keys, all held out or all open to training."""
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = draw_scene(rng)
        if scene.held_out == held_out:
            scenes.setdefault(scene.key, scene)
    return list(scenes.values())


@functools.cache
def vocabulary(name: str) -> frozenset[str]:
    """Return every word, in lower case, that replies in this format can contain."""
    reply = FORMATS[name]
    words: set[str] = set()
    for noun in NOUNS:
        for determiner in DETERMINERS:
            for i, place in enumerate(PLACES):
                scenes = (
                    Scene(determiner, adjective, noun, preposition, place)
                    for adjective in (ADJECTIVES if i == 0 else ADJECTIVES[:1])
                    for preposition in PREPOSITIONS
                )
                for scene in scenes:
                    words.update(re.findall(r"\w+", reply(scene).lower()))
    return frozenset(words)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _known(word: str, words: tuple[str, ...]) -> str:
    if word not in words:
        raise KeyError(word)
    return word
