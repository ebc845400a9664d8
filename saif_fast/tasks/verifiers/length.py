"""Verifiers of a reply's length."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier, ended

# The end of a sentence: not after an initial, a title or a number of a list.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\b(?:Mr|Dr|St|vs))(?<!\b(?:Mrs|etc))(?<!\be\.g)(?<!\bi\.e)(?<!^\d)"
    r"[.!?…]+[\"'”’»)\]*_]*(?=\s|$)"
)


class WordCount(Verifier, frozen=True, tag="word_count"):
    """The reply has ``least`` to ``most`` words.

    A cut reply counts as it is: ``most`` must be in reach of the task's ``max_tokens``.
    """

    least: Annotated[int, Meta(ge=1)] = 2
    most: int | None = None

    def holds(self, reply: str) -> bool:
        count = len(words(reply))
        return self.least <= count and (self.most is None or count <= self.most)


class Sentences(Verifier, frozen=True, tag="sentences"):
    """The reply is ``count`` whole sentences on as many paragraphs or fewer.

    A cut reply fails: a sentence that has not ended is no sentence.
    """

    count: Annotated[int, Meta(ge=1)] = 1
    least_words: Annotated[int, Meta(ge=1)] = 3

    def holds(self, reply: str) -> bool:
        text = reply.strip()
        lines = [line for line in text.split("\n") if line.strip()]
        found = len(_SENTENCE_END.findall(text))
        return (
            ended(text)
            and found == self.count
            and len(lines) <= self.count
            and len(words(text)) >= self.least_words * self.count
        )
