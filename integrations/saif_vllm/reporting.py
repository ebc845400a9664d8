"""Reports of what an engine did, from the counters on its devices: per request, and in total."""

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
    """Counts of one request so far.

    A token counts once, even if it is computed several times; as ``nonfinite`` it counts each time.

    Attributes:
        request_id: the user's; a request of n > 1 outputs has n reports.
        serial: engine-wide serial number of the request. Request ids may be reused, serials are
            not.
        sets: set names with strengths, as asked for.
        content_hashes: of these sets; they say what the names stood for when the request arrived.
        planned: tokens inside the request's window.
        steered: planned tokens that all hooked layers steered: all but those not finite.
        shortened: steered tokens whose change was scaled down at some layer, to ``max_dose`` or to
            the range of the model's dtype.
        nonfinite: tokens of which the change or the residual stream was not finite. They were not
            steered, and the request ended with an error.
        dose: by layer.
    """

    request_id: str
    serial: int
    sets: str
    content_hashes: tuple[str, ...]
    planned: int
    steered: int
    shortened: int
    nonfinite: int
    dose: dict[int, Dose]

    @property
    def window_reached(self) -> bool:
        """Whether any token was inside the window; a generation may end before the window."""
        return self.planned > 0


class Totals(msgspec.Struct, frozen=True):
    """Sums over all requests since the engine's start.

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
    """Report on the steered requests of a ``vllm.LLM``, oldest first.

    Requests that have ended are reported on too, the last 4096 of them. Waits for the devices; call
    it between generations.

    Example::

        last = saif_vllm.report(llm)[-1]
        assert last.steered == last.planned  # steered wherever it should have been

    Raises:
        ValueError: ``llm`` is an ``AsyncLLM``.
    """
    refuse_async(llm, "use: await saif_vllm.report_async(engine)")
    return _merge_reports(llm.collective_rpc(_METHOD))


async def report_async(engine: Any) -> list[RequestReport]:
    """Report on an ``AsyncLLM`` as :func:`report` does; its requests may go on meanwhile.

    Raises:
        ValueError: ``engine`` is a ``vllm.LLM``.
    """
    if not iscoroutinefunction(engine.collective_rpc):
        raise ValueError(
            f"engine: expected an AsyncLLM, got {type(engine).__name__}; use: saif_vllm.report(llm)"
        )
    return _merge_reports(await engine.collective_rpc(_METHOD))


def refuse_async(llm: Any, instead: str) -> None:
    """Raise ValueError for an ``AsyncLLM`` where a ``vllm.LLM`` is wanted."""
    if iscoroutinefunction(getattr(llm, "collective_rpc", None)):
        raise ValueError(f"llm: expected a vllm.LLM, got {type(llm).__name__}; {instead}")


def _merge_reports(ranks: Sequence[Any]) -> list[RequestReport]:
    merged: dict[int, RequestReport] = {}
    for request in (
        request
        for rank in ranks
        for request in msgspec.convert(rank, list[RequestReport], strict=False)
    ):
        known = merged.get(request.serial, request)
        # Tensor-parallel ranks report the same, pipeline ranks their own layers.
        merged[request.serial] = _merge_ranks(known, request)
    return [merged[serial] for serial in sorted(merged)]


_Counted = TypeVar("_Counted", RequestReport, Totals)


def _merge_ranks(one: _Counted, other: _Counted) -> _Counted:
    """Merge what two ranks counted of the same tokens."""
    return msgspec.structs.replace(
        one,
        steered=min(one.steered, other.steered),
        shortened=max(one.shortened, other.shortened),
        nonfinite=max(one.nonfinite, other.nonfinite),
        dose={**one.dose, **other.dose},
    )


async def read_totals(engine_client: Any) -> Totals:
    """Return what an ``AsyncLLM`` did since its start. Waits for the devices, between two steps."""
    ranks = [
        msgspec.convert(found, Totals, strict=False)
        for found in await engine_client.collective_rpc("saif_totals")
    ]
    # A pipeline rank without a hooked layer counts nothing.
    first, *others = (found for found in ranks if found.dose)
    for found in others:
        first = _merge_ranks(first, found)
    return first
