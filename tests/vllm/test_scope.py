from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from saif_fast.latent_set import LatentSet
from saif_vllm.config import SteeringConfig
from saif_vllm.request import resolve
from saif_vllm.scope import check_scope
from saif_vllm.sets import OfferedSets

CONFIG = SteeringConfig((1, 2), 32, 1024, 4, 10.0, "1")


@pytest.fixture(scope="module")
def offered(sets: Mapping[str, LatentSet]) -> OfferedSets:
    return OfferedSets(sets, CONFIG, hidden_size=64, num_layers=3)


def check(offered: OfferedSets, prompt_logprobs: bool, **asked: Any) -> None:
    steered = resolve(asked, offered, CONFIG)
    assert steered is not None
    check_scope(steered, offered, prompt_logprobs)


@pytest.mark.parametrize("saif", ["add_last", "add_middle"])
def test_a_prompt_that_is_not_steered_has_no_logprobs(saif: str, offered: OfferedSets) -> None:
    for options in ({}, {"saif_scope": "generated"}, {"saif_start": 2}):
        with pytest.raises(ValueError, match="they would be the unsteered model's"):
            check(offered, True, saif=saif, **options)
        check(offered, False, saif=saif, **options)
    for scope in ("prompt", "all"):
        check(offered, True, saif=saif, saif_scope=scope)


@pytest.mark.parametrize(
    ("saif", "shows"),
    [
        ("add_last", False),
        ("add_last + vector_last", False),
        ("add_last + add_middle", True),
        ("both", True),
    ],
)
def test_a_prompt_steered_at_the_last_layer_only_must_show(
    saif: str, shows: bool, offered: OfferedSets
) -> None:
    if shows:
        check(offered, False, saif=saif, saif_scope="prompt")
    else:
        with pytest.raises(ValueError, match="nothing but the first token"):
            check(offered, False, saif=saif, saif_scope="prompt")
    check(offered, True, saif=saif, saif_scope="prompt")
    check(offered, False, saif=saif, saif_scope="all")
