"""Metrics beside vLLM's own on ``/metrics``.

Each front end counts the requests that arrive at it. The devices count tokens; their counters are
read whenever the metrics are.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache, partial
from typing import Any, NamedTuple

from saif_vllm.parsing import Parsed
from saif_vllm.reporting import read_totals

logger = logging.getLogger("vllm.saif")
_TIMEOUT = 5.0  # seconds, less than the timeout of a scrape
_reading = asyncio.Lock()


class _Counters(NamedTuple):
    requests: Any
    refused: Any


@cache
def _counters() -> _Counters:
    # Created at first use: with several API servers, vLLM first sets where processes share counts.
    from prometheus_client import Counter

    return _Counters(
        Counter("saif:requests", "Steered requests, by set.", ["set"]),
        Counter("saif:requests_refused", "Requests that were refused for what they ask of saif."),
    )


@cache
def _gauges() -> dict[str, Any]:
    # Gauges, because whichever API server is scraped sets them to what the engine counted.
    from prometheus_client import Gauge

    gauge = partial(Gauge, multiprocess_mode="mostrecent")
    return {
        "planned": gauge("saif:tokens_planned_total", "Tokens that were to be steered."),
        "steered": gauge("saif:tokens_steered_total", "Those that every hooked layer steered."),
        "shortened": gauge("saif:tokens_shortened_total", "Those whose change was cut down."),
        "nonfinite": gauge("saif:tokens_nonfinite_total", "Tokens not finite, hence not steered."),
        "dose": gauge("saif:relative_dose_total", "Sum of |change| / |x|, by layer.", ["layer"]),
    }


def count_request(asked: Parsed) -> None:
    """Count a request that has passed validation, once per set."""
    for offered, _ in asked.sets:
        _counters().requests.labels(offered.name).inc()


def count_refusal() -> None:
    """Count a request that was answered with HTTP 400, or with a ValueError."""
    _counters().refused.inc()


async def update_token_metrics(engine_client: Any) -> None:
    """Set the token metrics to the devices' counters.

    If the engine does not answer, they keep their last values. Errors are only logged, because
    vLLM's own metrics must stay readable.
    """
    if _reading.locked():  # Another scrape is already reading; do not queue a second device read.
        return
    async with _reading:
        try:
            found = await asyncio.wait_for(read_totals(engine_client), _TIMEOUT)
        except Exception as error:
            logger.warning("/metrics: tokens steered are as of an earlier time: %r", error)
            return
    gauges = _gauges()
    for name in ("planned", "steered", "shortened", "nonfinite"):
        gauges[name].set(getattr(found, name))
    for layer, total in found.dose.items():
        gauges["dose"].labels(layer).set(total)
