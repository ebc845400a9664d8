"""Verifiers of the words that a reply uses."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier

# Forms that are past and nothing else. Left out: forms that are the same in the present (put, read)
# and those that often are participles or adjectives after a present verb (known, based).
_PAST = frozenset(
    "was were had did went came saw said took made gave found told thought knew got became began "
    "felt left kept brought wrote stood heard let ran held paid met sat led grew lost fell sent "
    "built spoke spent chose ate drank slept swam sang taught caught bought fought sought rose "
    "drove flew drew threw wore won broke forgot understood meant dealt could would used".split()
)
_PRESENT = frozenset(
    "is are am isn't aren't it's that's there's i'm we're they're you're has have hasn't haven't "
    "i've we've they've do does don't doesn't can can't may must shall will won't i'll you'll "
    "it'll makes means helps involves includes provides needs requires allows takes goes comes "
    "gets gives becomes contains happens refers depends works uses".split()
)
_REGULAR_PAST = re.compile(r"(?!hundred|sacred|naked)[a-z]{2,}[^e]ed")


class Contains(Verifier, frozen=True, tag="contains"):
    """The reply has one or more of ``texts`` as whole words, in any case.

    A cut reply counts as it is.
    """

    texts: Annotated[tuple[str, ...], Meta(min_length=1)]

    def holds(self, reply: str) -> bool:
        text = "|".join(map(re.escape, self.texts))
        return re.search(rf"(?<!\w)(?:{text})(?!\w)", reply, re.IGNORECASE) is not None


class Lacks(Verifier, frozen=True, tag="lacks"):
    """The reply has ``least_words`` words or more, and ``text`` nowhere.

    A cut reply counts as it is.
    """

    text: Annotated[str, Meta(min_length=1)]
    least_words: Annotated[int, Meta(ge=1)] = 8

    def holds(self, reply: str) -> bool:
        return len(words(reply)) >= self.least_words and self.text not in reply


class Matches(Verifier, frozen=True, tag="matches"):
    """A part of the reply matches the regular expression ``pattern``.

    A cut reply counts as it is.
    """

    pattern: Annotated[str, Meta(min_length=1)]

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern: expected a regular expression, got {self.pattern!r} ({error})"
            ) from None

    def holds(self, reply: str) -> bool:
        return bool(words(reply)) and re.search(self.pattern, reply) is not None


class PastTense(Verifier, frozen=True, tag="past_tense"):
    """The verbs of an English reply are past: of those that tell, ``share`` or more.

    Telling are auxiliaries, common irregular verbs and words in -ed. A cut reply counts as it is.
    """

    share: Annotated[float, Meta(gt=0.5, le=1.0)] = 0.8
    least: Annotated[int, Meta(ge=1)] = 2

    def holds(self, reply: str) -> bool:
        said = words(reply.replace("’", "'").casefold())
        present = sum(word in _PRESENT for word in said)
        past = sum(word in _PAST or _REGULAR_PAST.fullmatch(word) is not None for word in said)
        return past >= self.least and past >= self.share * (past + present)
