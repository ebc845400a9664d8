"""What an engine did, from the counters on its devices: for each request, and in all."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import iscoroutinefunction
from typing import Any, TypeVar

import msgspec

_METHOD = "saif_report"  # of the worker extension


class Dose(msgspec.Struct, frozen=True):
    """``|change| / |x|`` over the steered tokens of one request at one layer."""

    mean: float
    max: float


class RequestReport(msgspec.Struct, frozen=True):
    """What was done for one request so far. A token counts once, however often it is computed; as
    ``nonfinite``, each time.

    Attributes:
        request_id: the user's; requests of n > 1 outputs are as many reports.
        admission: the number of the request in its engine.
        sets: set names with strengths, as asked for.
        content_hashes: of these sets: what the names stood for when the request came in.
        planned: tokens inside the request's window.
        steered: those of them that all hooked layers steered: all but those that are not finite.
        shortened: of the steered ones, those whose change was cut down at some layer: to
            ``max_dose``, or to what the model's dtype has room for.
        nonfinite: tokens of which the change or the residual stream was not finite. They were not
            steered, and the request ended with an error.
        dose: by layer.
    """

    request_id: str
    admission: int
    sets: str
    content_hashes: tuple[str, ...]
    planned: int
    steered: int
    shortened: int
    nonfinite: int
    dose: dict[int, Dose]

    @property
    def window_reached(self) -> bool:
        """Whether any token was inside the window; a generation may be shorter than its start."""
        return self.planned > 0


class Totals(msgspec.Struct, frozen=True):
    """What was done for all requests since the engine's start.

    Attributes:
        planned, steered, shortened, nonfinite: tokens, as in :class:`RequestReport`.
        dose: by layer, the sum of ``|change| / |x|`` over the steered tokens.
    """

    planned: int
    steered: int
    shortened: int
    nonfinite: int
    dose: dict[int, float]


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
