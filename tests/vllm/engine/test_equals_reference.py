"""Steered vLLM generates what steered Hugging Face generates, however the engine runs the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from engine_job import MODES, Served
from hf_reference import Comparison

pytestmark = pytest.mark.engine

EACH_MODE = pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=[pytest.mark.smoke] if mode in ("v1-eager", "v2-eager") else [])
        for mode in MODES
    ],
)


@EACH_MODE
def test_runs_as_it_says(mode: str, serve: Callable[[str], Served]) -> None:
    served = serve(mode)
    assert served.v2 == mode.startswith("v2")
    expected = {"eager": "NONE", "compiled": "DYNAMO_TRACE_ONCE", "vllm-compile": "VLLM_COMPILE"}
    assert served.compilation == expected[mode.partition("-")[2]]


@EACH_MODE
def test_mixed_batch_equals_the_reference(
    mode: str, serve: Callable[[str], Served], reference: Mapping[str, Any]
) -> None:
    comparison = Comparison()
    for (name, expected), got in zip(reference.items(), serve(mode).batches[0], strict=True):
        comparison.add(name, expected, got)
    comparison.check()


@EACH_MODE
def test_each_request_equals_its_solo_run(
    mode: str,
    serve: Callable[[str], Served],
    solo: Callable[[str], list[str]],
    requests: Mapping[str, Any],
) -> None:
    mixed, *single = serve(mode).batches
    together, comparison = dict(zip(requests, mixed, strict=True)), Comparison()
    for name, batch in zip(solo(mode), single, strict=True):
        comparison.add(name, batch[0], together[name])
    comparison.check()


@EACH_MODE
def test_unsteered_requests_equal_an_engine_without_the_plugin(
    mode: str,
    serve: Callable[[str], Served],
    plain: Mapping[str, Any],
    requests: Mapping[str, Any],
) -> None:
    comparison = Comparison()
    for name, got in zip(requests, serve(mode).batches[0], strict=True):
        if name in unsteered(requests):
            comparison.add(name, plain[name], got)
    assert comparison.compared == 5
    # The engine without the plugin is of the first mode: there nothing may differ.
    comparison.check(most_excused=0 if mode == "v1-eager" else 1)


def test_every_set_changes_the_text(
    reference: Mapping[str, Any], plain: Mapping[str, Any], requests: Mapping[str, Any]
) -> None:
    # Else the equalities above would say nothing.
    same = [name for name in requests if reference[name]["tokens"] == plain[name]["tokens"]]
    assert same == unsteered(requests)


def unsteered(requests: Mapping[str, Any]) -> list[str]:
    return [name for name, asked in requests.items() if asked["extra_args"] is None]
