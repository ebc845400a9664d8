"""Reports of several ranks become one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from saif_vllm.reporting import Dose, RequestReport, Totals, read_totals, report, report_async

BOTH = Totals(8, 8, 0, 0, {1: 0.5, 2: 1.0})


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([BOTH], BOTH),
        ([BOTH, BOTH], BOTH),  # tensor-parallel
        ([Totals(8, 8, 0, 0, {1: 0.5}), Totals(8, 8, 0, 0, {2: 1.0})], BOTH),  # pipeline-parallel
        ([Totals(0, 0, 0, 0, {}), BOTH], BOTH),  # one of them without a hooked layer
        ([BOTH, Totals(0, 0, 0, 0, {})], BOTH),
        (
            [Totals(8, 8, 0, 0, {1: 0.5}), Totals(8, 7, 0, 0, {2: 1.0})],
            Totals(8, 7, 0, 0, {1: 0.5, 2: 1.0}),
        ),
    ],
)
def test_totals_are_those_of_all_hooked_layers(ranks: Sequence[Totals], expected: Totals) -> None:
    async def collective_rpc(method: str) -> list[Any]:
        return [msgspec.to_builtins(found) for found in ranks]

    assert asyncio.run(read_totals(SimpleNamespace(collective_rpc=collective_rpc))) == expected


def one(serial: int, layer: int, steered: int) -> RequestReport:
    return RequestReport("r", serial, "a*1", ("hash",), 4, steered, 0, 0, {layer: Dose(0.5, 1.0)})


def test_a_request_is_steered_where_all_ranks_steered_it() -> None:
    ranks = [[one(1, 0, 4), one(0, 0, 4)], [one(0, 5, 4), one(1, 5, 3)], []]
    llm = SimpleNamespace(
        collective_rpc=lambda method: [[msgspec.to_builtins(x) for x in found] for found in ranks]
    )
    first, second = report(llm)
    assert (first.serial, first.steered, set(first.dose)) == (0, 4, {0, 5})
    assert (second.serial, second.steered, second.planned) == (1, 3, 4)


class Async:
    """The part of an ``AsyncLLM`` that is looked at."""

    async def collective_rpc(self, method: str) -> list[Any]:
        assert method == "saif_report"
        return [[msgspec.to_builtins(one(0, 0, 4))], [msgspec.to_builtins(one(0, 5, 3))]]


def test_an_async_engine_is_waited_for() -> None:
    [found] = asyncio.run(report_async(Async()))
    assert (found.steered, set(found.dose)) == (3, {0, 5})


def test_an_engine_of_the_other_kind_is_told_what_to_call() -> None:
    with pytest.raises(ValueError, match=r"expected a vllm.LLM, got Async; use: .*report_async\("):
        report(Async())
    llm = SimpleNamespace(collective_rpc=lambda method: [])
    with pytest.raises(ValueError, match=r"expected an AsyncLLM, got SimpleNamespace; use: .*rep"):
        asyncio.run(report_async(llm))
