"""What an engine did, from the counters on its devices: for each request, and in all."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from saif_vllm.proof import RequestReport, Totals


def report(llm: Any) -> list[RequestReport]:
    """What was done for the steered requests of a ``vllm.LLM``, oldest first, up to some thousands.

    ``report(llm)[-1].steered == report(llm)[-1].planned`` is the proof that the last request was
    steered wherever it should have been. Waits for the devices; call it between generations.
    """
    ranks = [
        msgspec.convert(found, list[RequestReport], strict=False)
        for found in llm.collective_rpc("saif_report")
    ]
    merged: dict[int, RequestReport] = {}
    for found in (request for rank in ranks for request in rank):
        known = merged.get(found.admission, found)
        # Tensor-parallel ranks say the same, pipeline ranks speak of their own layers.
        merged[found.admission] = _merged(known, found)
    return [merged[number] for number in sorted(merged)]


_Counted = TypeVar("_Counted", RequestReport, Totals)


def _merged(one: _Counted, other: _Counted) -> _Counted:
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
        first = _merged(first, found)
    return first
