"""What `/metrics` has of steering: requests counted here, tokens as the devices counted them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from offered import catalog
from prometheus_client import REGISTRY

from saif_vllm.frontend import metrics
from saif_vllm.parsing import parse_extra_args
from saif_vllm.reporting import Totals


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def scrape(*ranks: Totals | Exception) -> None:
    """Read an engine's counters, or fail to."""

    async def answer(method: str) -> list[Any]:
        assert method == "saif_totals"
        for rank in ranks:
            if isinstance(rank, Exception):
                raise rank
        return [msgspec.to_builtins(rank) for rank in ranks]

    asyncio.run(metrics.update_token_metrics(SimpleNamespace(collective_rpc=answer)))


def test_a_request_counts_once_for_each_of_its_sets(set_dir: Path) -> None:
    offered = catalog(set_dir)
    names = ("add_last", "both", "clamp_last")
    before = [value("saif:requests_total", set=name) for name in names]
    for text in ("add_last", "add_last*2 + both"):
        asked = parse_extra_args({"saif": text}, offered)
        assert asked is not None
        metrics.count_request(asked)
    after = [value("saif:requests_total", set=name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 0]


def test_a_refusal_counts() -> None:
    metrics.count_refusal()
    before = value("saif:requests_refused_total")
    metrics.count_refusal()
    assert value("saif:requests_refused_total") == before + 1


def test_tokens_are_those_of_the_devices_and_stay_while_the_engine_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ("planned", "steered", "shortened", "nonfinite")
    scrape(Totals(9, 8, 2, 1, {3: 0.5}), Totals(9, 7, 1, 0, {5: 2.0}), Totals(0, 0, 0, 0, {}))
    for _ in range(2):
        assert [value(f"saif:tokens_{name}_total") for name in names] == [9, 7, 2, 1]
        assert [value("saif:relative_dose_total", layer=layer) for layer in "35"] == [0.5, 2.0]
        scrape(RuntimeError("dead"))
    assert "tokens steered are as of an earlier time: RuntimeError('dead')" in caplog.text
    scrape(Totals(10, 10, 2, 1, {3: 0.75, 5: 2.0}))
    assert value("saif:tokens_steered_total") == 10
