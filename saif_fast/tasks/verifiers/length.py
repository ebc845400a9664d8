"""Verifiers of a reply's length."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier, ended, sentences


class WordCount(Verifier, frozen=True, tag="word_count"):
    """The reply has ``least`` to ``most`` words.

    A cut reply counts as it is: ``most`` must be in reach of the task's ``max_tokens``.
    """

    least: Annotated[int, Meta(ge=1)] = 2
    most: int | None = None

    def holds(self, reply: str) -> bool:
        count = len(words(reply))
        return self.least <= count and (self.most is None or count <= self.most)

    def rewrite(self, reply: str) -> str | None:
        if self.most is None:
            return None
        text = ""
        for sentence in sentences(reply):
            longer = f"{text} {sentence}".strip()
            if len(words(longer)) > self.most:
                break
            text = longer
        return text or " ".join(words(reply)[: self.most]) + "."


class Sentences(Verifier, frozen=True, tag="sentences"):
    """The reply is ``count`` whole sentences; a line break ends one too.

    A cut reply fails: a sentence that has not ended is no sentence.
    """

    count: Annotated[int, Meta(ge=1)] = 1
    least_words: Annotated[int, Meta(ge=1)] = 3  # of each

    def holds(self, reply: str) -> bool:
        found = sentences(reply)
        return (
            len(found) == self.count
            and ended(reply)
            and all(len(words(each)) >= self.least_words for each in found)
        )

    def rewrite(self, reply: str) -> str:
        return " ".join(sentences(reply)[: self.count])
