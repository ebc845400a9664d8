"""Types that travel with a request: ``Found`` to the core, ``Placed`` on to the workers.

They travel in ``extra_args`` of vLLM's ``SamplingParams``, which is the user's part of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from saif_fast.request import REQUEST_KEYS
from saif_fast.set_file import Identity
from saif_kernels import Window

CAPTURE_KEY = "saif_capture"  # asks to keep a residual, see engine_residuals.py
_FOUND_KEY = "saif_found"  # a request's sets, from front end to core; no user gives it
# Key under which an admitted request carries its `Steered`. Any other value means that the core
# never checked the request: it is also the user's key for the names of sets.
_STEERED_KEY = "saif"


class Found(msgspec.Struct, frozen=True, array_like=True):
    """A set as the front end found it, and as a request carries it to the engine core.

    The content travels with the request, so that the core serves what was validated even if the
    file changes meanwhile. That costs 20 us per 100 KB.
    """

    name: str
    content_hash: str
    identity: Identity  # of the file
    data: bytes  # the file's content


class SetUse(msgspec.Struct, frozen=True):
    """One set in a request. The content hash identifies it; the name is for messages."""

    name: str
    content_hash: str
    strength: float
    changes_kv: bool  # it edits a layer below the last, so that later layers' KV depends on it


class Steered(msgspec.Struct, frozen=True):
    """The steering of a request that the engine core has checked.

    It takes the place of the user's keys, see :func:`put_steered`.

    Attributes:
        sets: with strengths.
        window: positions where they apply.
        capture: index in the store of captured residuals, for the last prompt token's; -1: none.
        request_id: the user's.
        serial: engine-wide serial number. vLLM may reuse request ids; serials are never reused.
    """

    sets: tuple[SetUse, ...]
    window: Window
    capture: int = -1
    request_id: str = ""
    serial: int = -1


class Placed(Steered, frozen=True, kw_only=True):
    """The steering of a request whose sets are loaded, as the engine core hands it to the workers.

    A worker accepts nothing else, so no request reaches it past the core's checks, or before its
    sets.
    """

    slots: tuple[int, ...]  # in the workers' banks, of each of the sets

    @classmethod
    def of(cls, steered: Steered, slots: Mapping[str, int]) -> Placed:
        """Add the slots, which are given by content hash."""
        return cls(
            **msgspec.structs.asdict(steered),
            slots=tuple(slots[use.content_hash] for use in steered.sets),
        )


def format_sets(steered: Steered) -> str:
    """Format sets and strengths as a user writes them."""
    return " + ".join(f"{use.name}*{use.strength:g}" for use in steered.sets)


def split_keys(
    extra_args: Mapping[str, object] | None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Split ``extra_args`` into our keys and all others."""
    ours = (*REQUEST_KEYS, CAPTURE_KEY, _FOUND_KEY)
    given = dict(extra_args or {})
    return {key: given.pop(key) for key in ours if key in given}, given


def put_found(params: Any, found: Iterable[Found]) -> None:
    """Put the sets that were found for a request into vLLM's ``SamplingParams``, for the core."""
    sent = [msgspec.structs.astuple(one) for one in found]
    params.extra_args = {**params.extra_args, _FOUND_KEY: sent}


def take_found(params: Any) -> tuple[dict[str, object], list[Found]]:
    """Return the user's ``extra_args``, and the sets that a front end of ours put beside them."""
    given = dict(params.extra_args or {})
    return given, msgspec.convert(given.pop(_FOUND_KEY, []), list[Found])


def put_steered(params: Any, steered: Steered) -> None:
    """Put ``steered`` in place of the user's keys into vLLM's ``SamplingParams``."""
    _, others = split_keys(params.extra_args)
    params.extra_args = {**others, _STEERED_KEY: steered}


def get_steered(params: Any) -> Steered | None:
    """Return what an admitted request's parameters carry; a pooling request has no parameters."""
    return None if params is None else (params.extra_args or {}).get(_STEERED_KEY)


def get_placed(params: Any) -> Placed | None:
    """Return what :func:`get_steered` does, for a worker: the sets are loaded.

    Raises:
        RuntimeError: the request went past the engine core's check, so its sets are not loaded.
    """
    placed = get_steered(params)
    if placed is not None and not isinstance(placed, Placed):
        raise RuntimeError("a steered request reached the worker unchecked: the seam is not armed")
    return placed
