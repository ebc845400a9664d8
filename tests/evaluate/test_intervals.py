from __future__ import annotations

import pytest

from saif_fast.evaluate.intervals import Accuracy, difference, wilson
from saif_fast.tasks import Score


# The last four are those of Newcombe (1998), Statistics in Medicine 17, table I.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_known_bounds(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_counts_that_cannot_be(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


def test_accuracy_counts_strict_and_loose_and_is_ordered_by_strict_first() -> None:
    accuracy = Accuracy.from_scores([Score(True, True), Score(False, True), Score(False, False)])
    assert accuracy == (1, 2, 3)
    assert Accuracy(2, 2, 3) > Accuracy(1, 3, 3) > Accuracy(1, 2, 3)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10."""
    assert difference((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference((9, 10), (3, 10)) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    assert difference((10, 10), (0, 10)) == pytest.approx((0.6075, 1.0), abs=1e-4)
    low, high = difference((48, 80), (56, 70))
    assert (-high, -low) == pytest.approx(difference((56, 70), (48, 80)))
