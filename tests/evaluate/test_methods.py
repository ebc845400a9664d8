from __future__ import annotations

import pytest
import torch

from saif_fast.evaluate.methods import (
    Candidate,
    Method,
    check_equal_search,
    log_grid,
    logit_biases,
    strengths,
)
from saif_fast.latent_set import LatentSet


def test_log_grid_ends_where_it_is_told_to() -> None:
    assert log_grid(0.1, 10.0, 5) == [0.1, 0.3162, 1.0, 3.162, 10.0]


def test_logit_biases_have_the_largest_bias_asked_for_and_keep_the_direction() -> None:
    low, high = logit_biases("bias", {3: 2.0, 5: -4.0}, [1.0, 8.0]).candidates
    assert low.logit_bias == {3: 0.5, 5: -1.0}
    assert high.logit_bias == {3: 4.0, 5: -8.0}
    assert high.parameters == {"largest_bias": 8.0, "tokens": 2}


@pytest.mark.parametrize("bias", [{}, {3: 0.0}], ids=["empty", "zero"])
def test_a_bias_without_direction_is_refused(bias: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="not zero"):
        logit_biases("bias", bias, [1.0])


def test_strengths_in_two_scopes_are_two_candidates_each() -> None:
    vector = LatentSet.from_vector(torch.ones(4), layer=0, num_layers=1)
    method = strengths("vector", vector, [1.0, 2.0], ("generated", "all"))
    assert [(c.strength, dict(c.options)) for c in method.candidates] == [
        (1.0, {}),
        (2.0, {}),
        (1.0, {"saif_scope": "all"}),
        (2.0, {"saif_scope": "all"}),
    ]


def test_unequal_searches_are_refused() -> None:
    one, two = Method("one", (Candidate(),)), Method("two", (Candidate(), Candidate()))
    assert check_equal_search([one, one]) == 1
    with pytest.raises(ValueError, match=r"same number.*'one': 1, 'two': 2"):
        check_equal_search([one, two])


def test_a_method_without_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="method none"):
        Method("none", ())
