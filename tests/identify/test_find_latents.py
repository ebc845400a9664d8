"""What is refused before the model runs."""

from __future__ import annotations

import pytest
from random_model import D_MODEL, N_LAYERS, tiny_sae

from saif_fast.identify import build_pairs, find_latents
from saif_fast.model_info import ModelInfo


class Untouched:
    """A source of residuals that must not be asked for any."""

    model = ModelInfo("org/tiny-it", D_MODEL, N_LAYERS)

    def last(self, *_: object) -> None:
        raise AssertionError("the model ran")

    every = last


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"model_name": "org/base"}, {}, "allow_mismatch"),
        ({"layer": N_LAYERS}, {}, "sae layer"),
        ({"normalization": "layer_norm"}, {}, "can only identify"),
        ({}, {"k": 49}, "k: expected 1 to 48"),
        ({}, {"beta": float("inf")}, "beta: expected a finite number"),
    ],
    ids=["name", "layer", "normalization", "k", "beta"],
)
def test_identify_asks_before_the_model_runs(
    change: dict[str, object], options: dict[str, object], message: str
) -> None:
    pairs = build_pairs(["w1"], ["w2", "w3"])
    with pytest.raises(ValueError, match=message):
        find_latents(Untouched(), None, tiny_sae(**change), pairs, **options)  # type: ignore[arg-type]
