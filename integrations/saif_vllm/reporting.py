"""What an engine did, from the counters on its devices: for each request, and in all."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import iscoroutinefunction
from typing import Any, TypeVar

import msgspec

from saif_vllm.proof import RequestReport, Totals

_METHOD = "saif_report"  # of the worker extension


def report(llm: Any) -> list[RequestReport]:
    """What was done for the steered requests of a ``vllm.LLM``, oldest first, up to some thousands.

    ``report(llm)[-1].steered == report(llm)[-1].planned`` is the proof that the last request was
    steered wherever it should have been. Waits for the devices; call it between generations.

    Raises:
        ValueError: ``llm`` is an ``AsyncLLM``.
    """
    refuse_async(llm, "use: await saif_vllm.report_async(engine)")
    return _merged(llm.collective_rpc(_METHOD))


async def report_async(engine: Any) -> list[RequestReport]:
    """As :func:`report`, of an ``AsyncLLM``; its requests may go on meanwhile.

    Raises:
        ValueError: ``engine`` is a ``vllm.LLM``.
    """
    if not iscoroutinefunction(engine.collective_rpc):
        raise ValueError(
            f"engine: expected an AsyncLLM, got {type(engine).__name__}; use: saif_vllm.report(llm)"
        )
    return _merged(await engine.collective_rpc(_METHOD))


def refuse_async(llm: Any, instead: str) -> None:
    """Raise ValueError for an ``AsyncLLM`` where a ``vllm.LLM`` is wanted."""
    if iscoroutinefunction(getattr(llm, "collective_rpc", None)):
        raise ValueError(f"llm: expected a vllm.LLM, got {type(llm).__name__}; {instead}")


def _merged(ranks: Sequence[Any]) -> list[RequestReport]:
    merged: dict[int, RequestReport] = {}
    for request in (
        request
        for rank in ranks
        for request in msgspec.convert(rank, list[RequestReport], strict=False)
    ):
        known = merged.get(request.admission, request)
        # Tensor-parallel ranks say the same, pipeline ranks speak of their own layers.
        merged[request.admission] = _both(known, request)
    return [merged[number] for number in sorted(merged)]


_Counted = TypeVar("_Counted", RequestReport, Totals)


def _both(one: _Counted, other: _Counted) -> _Counted:
    """What two ranks say of the same tokens."""
    return msgspec.structs.replace(
        one,
        steered=min(one.steered, other.steered),
        shortened=max(one.shortened, other.shortened),
        nonfinite=max(one.nonfinite, other.nonfinite),
        dose={**one.dose, **other.dose},
    )


async def totals(engine_client: Any) -> Totals:
    """What an ``AsyncLLM`` did since its start. Waits for the devices, between two steps."""
    ranks = [
        msgspec.convert(found, Totals, strict=False)
        for found in await engine_client.collective_rpc("saif_totals")
    ]
    # A pipeline rank that has no hooked layer counts nothing.
    first, *others = (found for found in ranks if found.dose)
    for found in others:
        first = _both(first, found)
    return first
