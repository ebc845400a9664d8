"""Counts of right replies, and the Wilson intervals of their shares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from saif_fast.tasks import Score

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


class Interval(NamedTuple):
    """Bounds of a proportion, both in [0, 1]."""

    low: float
    high: float


def wilson(successes: int, n: int, z: float = Z_95) -> Interval:
    """Return the Wilson score interval of ``successes`` out of ``n``, not continuity-corrected.

    Unlike the normal interval it stays inside [0, 1], and has a width at 0 and at n successes too.

    Raises:
        ValueError: n < 1, or successes outside 0 .. n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes: expected 0 to n with n >= 1, got {successes} of {n}")
    rate, squared = successes / n, z * z / n
    centre = (rate + squared / 2) / (1 + squared)
    half = z * math.sqrt((rate * (1 - rate) + squared / 4) / n) / (1 + squared)
    # The bounds are exact at the ends; subtracting leaves 1e-18 instead of 0.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def difference(one: tuple[int, int], other: tuple[int, int]) -> Interval:
    """Return Newcombe's 95 % interval of the difference between two shares, in [-1, 1].

    It is made of the two Wilson intervals (Newcombe 1998, method 10), so it too has a width at 0
    and at n successes. It takes the two samples for independent, which is cautious where both
    answered the same contents.

    Args:
        one: successes, and n.
        other: the same of the share that is subtracted.

    Raises:
        ValueError: as :func:`wilson`.

    Examples:
        >>> difference((56, 70), (48, 80))  # Newcombe's own: 0.0524 to 0.3339
    """
    (a, n), (b, m) = one, other
    first, second = wilson(a, n), wilson(b, m)
    gap = a / n - b / m
    below = math.hypot(a / n - first.low, second.high - b / m)
    above = math.hypot(first.high - a / n, b / m - second.low)
    return Interval(gap - below, gap + above)


class Accuracy(NamedTuple):
    """Counts of strictly and of loosely right replies, out of ``n``."""

    strict: int
    loose: int
    n: int

    @classmethod
    def from_scores(cls, scores: Iterable[Score]) -> Accuracy:
        """Count scores. A strict success is expected to be a loose one as well."""
        listed = list(scores)
        return cls(
            sum(score.strict for score in listed),
            sum(score.loose for score in listed),
            len(listed),
        )

    @property
    def interval(self) -> Interval:
        """The Wilson 95 % interval of the strict share."""
        return wilson(self.strict, self.n)
