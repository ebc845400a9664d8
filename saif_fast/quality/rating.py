"""Ratings of candidates: the harmonic mean of obedience and quality."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import harmonic_mean

import msgspec

from saif_fast.quality.yardstick import Answer, Yardstick
from saif_fast.runtime import Runtime


class Rating(msgspec.Struct, frozen=True):
    """What a candidate's replies are worth; shares are between 0 and 1.

    Attributes:
        obedience: share of the replies that do fully what was asked.
        quality: share of the replies that are sound; None = not asked, because none obeys.
        score: harmonic mean of the two, ``2 * obedience * quality / (obedience + quality)``; 0 if
            either is 0.
        n: number of replies.
    """

    obedience: float
    quality: float | None
    score: float
    n: int


def rate(
    yardstick: Yardstick, runtime: Runtime, candidates: Sequence[Sequence[tuple[Answer, bool]]]
) -> list[Rating]:
    """Rate candidates by their replies, all in one call of ``runtime.score``.

    Args:
        yardstick: judges the replies.
        runtime: scores them, unsteered.
        candidates: of each candidate its replies, one or more, each with whether it obeys
            strictly. Replies of a candidate that never obeys cost nothing.

    Examples:
        >>> replies = [(Answer("What is rain?", "LA LA LA LA", "Write in capitals."), True)]
        >>> rate(yardstick, runtime, [replies])
        [Rating(obedience=1.0, quality=0.0, score=0.0, n=1)]
    """
    obeying = [any(obeys for _, obeys in replies) for replies in candidates]
    asked = [
        answer
        for replies, obeys in zip(candidates, obeying, strict=True)
        if obeys
        for answer, _ in replies
    ]
    judged = iter(yardstick.judge(runtime, asked))
    ratings = []
    for replies, obeys in zip(candidates, obeying, strict=True):
        n = len(replies)
        if not obeys:
            ratings.append(Rating(obedience=0.0, quality=None, score=0.0, n=n))
            continue
        obedience = sum(strict for _, strict in replies) / n
        quality = sum(next(judged).sound for _ in replies) / n
        ratings.append(Rating(obedience, quality, harmonic_mean([obedience, quality]), n))
    return ratings
