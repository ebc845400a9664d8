"""The protocol of scorers, and what they return.

A scorer is any callable of (content, reply): a function, a verifier, a judge, an exact target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class Score(NamedTuple):
    """The score of a reply: whether it does what was asked fully, and at least in part."""

    strict: bool
    loose: bool


class Scorer(Protocol):
    """A judge of one reply to one content."""

    def __call__(self, content: str, reply: str) -> Score:
        """Score ``reply`` as an answer to ``content``."""


@runtime_checkable
class BatchScorer(Scorer, Protocol):
    """A scorer that is faster on many replies at once, because it waits for a server."""

    def score_all(self, answers: Sequence[tuple[str, str]]) -> list[Score]:
        """Score many pairs of content and reply, in their order."""


def score_all(scorer: Scorer, answers: Sequence[tuple[str, str]]) -> list[Score]:
    """Score many pairs of content and reply, at once if the scorer can."""
    if isinstance(scorer, BatchScorer):
        return scorer.score_all(answers)
    return [scorer(content, reply) for content, reply in answers]


def words(text: str) -> list[str]:
    """Return the words of a text, without punctuation."""
    return _WORD.findall(text)
