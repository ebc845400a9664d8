"""Verifiers of the words that a reply uses."""

from __future__ import annotations

import itertools
import re
from typing import Annotated

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier

# Forms that are past and nothing else: no participles (known), none that are also present (put).
_PAST = frozenset(
    "was were wasn't weren't had hadn't did didn't went came saw said took made gave found told "
    "thought knew got became began felt left kept brought wrote stood heard held paid met sat led "
    "grew lost fell sent built spoke spent chose ate drank slept swam sang taught caught bought "
    "fought sought rose drove flew drew threw wore won broke forgot understood meant dealt ran "
    "could couldn't would wouldn't".split()
)
_PRESENT = frozenset(
    "is isn't are aren't am i'm you're we're they're it's that's there's has hasn't have haven't "
    "i've you've we've they've does doesn't do don't can can't cannot may must shall will won't "
    "i'll you'll it'll makes means helps involves includes provides needs requires allows takes "
    "goes comes gets gives becomes contains happens refers depends works uses keeps occurs".split()
)
# Verbs that are present, or tell somebody what to do, unless a word before them says otherwise.
_BASE = frozenset(
    "use make keep start try add take get go need want help know think say see find give begin "
    "live stay eat drink put place pour buy avoid".split()
)
_NO_PRESENT_AFTER = frozenset(
    "to did didn't could couldn't would wouldn't not a an the this that his her its their my our "
    "your".split()
)
_REGULAR_PAST = re.compile(r"(?!hundred|sacred|naked)[a-z]{2,}[^e]ed")
# A word in -ed is an adjective or a participle after these.
_NO_PAST_AFTER = frozenset(
    "a an the is are am be been being stay stays get gets feel feels keep keeps become becomes "
    "very more most well by i'm it's you're they're have has having".split()
)


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

    def rewrite(self, reply: str) -> str:
        return reply.replace(self.text, "")


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

    Telling are auxiliaries, common verbs and words in -ed that are no adjectives. A cut reply
    counts as it is.
    """

    share: Annotated[float, Meta(gt=0.5, le=1.0)] = 0.8
    least: Annotated[int, Meta(ge=1)] = 2

    def holds(self, reply: str) -> bool:
        said = words(reply.replace("’", "'").casefold())
        past = present = 0
        for before, word in itertools.pairwise(["", *said]):
            if word in _PAST:
                past += 1
            elif _REGULAR_PAST.fullmatch(word):
                past += before not in _NO_PAST_AFTER
            else:
                present += word in _PRESENT or (word in _BASE and before not in _NO_PRESENT_AFTER)
        return past >= self.least and past >= self.share * (past + present)
