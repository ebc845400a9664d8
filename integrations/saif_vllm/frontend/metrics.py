"""Metrics beside vLLM's own on ``/metrics``.

Requests are counted by the front end that they came in by. Tokens are counted on the devices, and
read when the metrics are.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache, partial
from typing import Any, NamedTuple

from saif_vllm.parsing import Parsed
from saif_vllm.reporting import totals

logger = logging.getLogger("vllm.saif")
_PATIENCE = 5.0  # seconds, less than what scrapes are given
_reading = asyncio.Lock()


class _Counters(NamedTuple):
    requests: Any
    refused: Any


@cache
def _counters() -> _Counters:
    # Not at import: in several API servers vLLM first says where processes share their counts.
    from prometheus_client import Counter

    return _Counters(
        Counter("saif:requests", "Steered requests, by set.", ["set"]),
        Counter("saif:requests_refused", "Requests that were refused for what they ask of saif."),
    )


@cache
def _gauges() -> dict[str, Any]:
    # Gauges, as they are set to what the engine counted, by whichever API server is asked.
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
    """A request has passed validation."""
    for offered, _ in asked.sets:
        _counters().requests.labels(offered.name).inc()


def count_refusal() -> None:
    """A request was answered with HTTP 400, or a ValueError."""
    _counters().refused.inc()


async def read_devices(engine_client: Any) -> None:
    """Bring the metrics of tokens up to date; an engine that does not answer leaves them.

    Nor may it keep vLLM's own metrics from being read, so no error goes further than the log.
    """
    if _reading.locked():  # for another scrape; they could not keep an engine busy
        return
    async with _reading:
        try:
            found = await asyncio.wait_for(totals(engine_client), _PATIENCE)
        except Exception as error:
            logger.warning("/metrics: tokens steered are as of an earlier time: %r", error)
            return
    gauges = _gauges()
    for name in ("planned", "steered", "shortened", "nonfinite"):
        gauges[name].set(getattr(found, name))
    for layer, total in found.dose.items():
        gauges["dose"].labels(layer).set(total)
