from __future__ import annotations

from dataclasses import replace

import pytest

from saif_fast.evaluate.methods import Candidate
from saif_fast.model_info import ModelInfo
from saif_fast.search.race import Outcome
from saif_fast.studies.across import BaseInstruct, Sizes
from saif_fast.studies.context import Figure, Setting
from saif_fast.studies.models import ModelFigures, TaskFigures
from saif_fast.studies.result import LeftOut


def figure(strict: int, n: int = 24) -> Figure:
    return Figure(Outcome(strict, strict, n, strict, n))


def model(name: str, saif: int, top: list[int] | None = None, d_model: int = 64) -> ModelFigures:
    setting = Setting(Candidate(), 0, 2, 1.0, Outcome(4, 4, 4, 4, 8))
    task = TaskFigures(figure(0), figure(24), figure(0), figure(saif), setting)
    return ModelFigures(
        name=name,
        info=ModelInfo(name, d_model, 3),
        parameters=1000,
        templated=True,
        tasks={"french": task},
        tops={("french", "hash"): top or [1, 2, 3]},
        layers={"hash": 2},
        fixed={"seed": 0},
    )


@pytest.mark.parametrize(
    ("followed", "expected"),
    [
        ((20, 20), "reproduced"),
        ((20, 0), "partly reproduced"),
        ((0, 0), "not reproduced"),
        ((7, 7), "undecided"),  # more than nothing, but 30 % is within the interval
    ],
)
def test_every_size_must_follow_surely_in_30_percent(
    followed: tuple[int, int], expected: str
) -> None:
    found = Sizes().conclude([model(f"m{i}", count) for i, count in enumerate(followed)])
    assert found.outcome == expected
    assert found.table is not None and [row[0] for row in found.table.rows] == ["m0", "m1"]


def test_one_model_says_nothing_of_sizes() -> None:
    found = Sizes().conclude([model("m", 20)])
    assert found.outcome == "undecided" and found.verdict.endswith(
        "one model says nothing of sizes"
    )


@pytest.mark.parametrize(
    ("top", "expected"), [([1, 2, 4], "not reproduced"), ([1, 2, 3], "reproduced")]
)
def test_base_and_instruct_are_compared_by_their_latents(top: list[int], expected: str) -> None:
    found = BaseInstruct().conclude([model("base", 0), model("it", 20, top)])
    assert found.outcome == expected
    assert found.table is not None and found.table.rows[0][:4] == ["base", "it", "french", 2]


def test_a_model_without_figures_is_told() -> None:
    silent = replace(model("silent", 0), tasks={}, trouble="it repeats itself")
    found = Sizes().conclude([model("m", 20), silent])
    assert found.outcome == "partly reproduced"
    assert found.verdict.endswith("silent: not measured, it repeats itself")


def test_models_of_other_shapes_or_saes_are_left_out() -> None:
    other = replace(model("c", 0), layers={"other": 2})
    with pytest.raises(LeftOut, match="no two of the models have the same shape"):
        BaseInstruct().conclude([model("a", 0), model("b", 0, d_model=32), other])
