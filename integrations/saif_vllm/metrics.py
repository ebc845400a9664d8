"""Counters beside vLLM's own on ``/metrics``, of the front end that a request came in by."""

from __future__ import annotations

from functools import cache
from typing import Any

from saif_vllm.request import Parsed


@cache
def _counters() -> tuple[Any, Any]:
    # Not at import: in several API servers vLLM first says where processes share their counts.
    from prometheus_client import Counter

    return (
        Counter("saif:requests", "Steered requests, by set.", ["set"]),
        Counter("saif:requests_refused", "Requests that were refused for what they ask of saif."),
    )


def count_request(asked: Parsed) -> None:
    """A request has passed validation."""
    for name in asked.sets:
        _counters()[0].labels(name).inc()


def count_refusal() -> None:
    """A request was answered with HTTP 400, or a ValueError."""
    _counters()[1].inc()
