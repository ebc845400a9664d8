"""``report``: what an engine did for each request, from the counters on its devices."""

from __future__ import annotations

from typing import Any

import msgspec

from saif_vllm.proof import RequestReport


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
        merged[found.admission] = msgspec.structs.replace(
            known,
            steered=min(known.steered, found.steered),
            dose={**known.dose, **found.dose},
        )
    return [merged[number] for number in sorted(merged)]
