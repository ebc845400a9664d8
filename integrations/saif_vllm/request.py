"""A request's way: validated by the front end, admitted by the engine core, read by the worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from saif_fast.request import REQUEST_KEYS
from saif_fast.set_file import Identity
from saif_kernels import Window

CAPTURE_KEY = "saif_capture"  # of identification, see engine_residuals.py
_FOUND_KEY = "saif_found"  # the sets, from front end to core; in no user's request
_STEERED = "saif"  # where the user's string lay; anything but a Steered was never admitted


class Found(msgspec.Struct, frozen=True, array_like=True):
    """A set as the front end found it, and as a request carries it to the engine core.

    Whatever becomes of the file meanwhile, the core has what was validated: the content goes with
    the request, which costs 20 us for 100 KB.
    """

    name: str
    content_hash: str
    identity: Identity  # of the file
    data: bytes  # its content


class SetUse(msgspec.Struct, frozen=True):
    """One set in a request. Its content hash is what counts; the name is for messages."""

    name: str
    content_hash: str
    strength: float
    changes_kv: bool  # it edits a layer below the last, so that later layers' KV depends on it
    slot: int = -1  # in the workers' tables; filled in when the set is loaded


class Steered(msgspec.Struct, frozen=True):
    """What a request asks for, as the engine core hands it to the workers.

    It takes the place of the user's keys, see :func:`carry`. A worker takes nothing else, so no
    request reaches it past the core's checks.

    Attributes:
        sets: with strengths.
        window: where they apply.
        capture: row of the store that keeps the last prompt token's residual; -1: not kept.
        request_id: the user's.
        admission: the number of this request in its engine; ids come back, numbers do not.
    """

    sets: tuple[SetUse, ...]
    window: Window
    capture: int = -1
    request_id: str = ""
    admission: int = -1


def spelled(steered: Steered) -> str:
    """Sets and strengths as a user writes them."""
    return " + ".join(f"{use.name}*{use.strength:g}" for use in steered.sets)


def split_keys(
    extra_args: Mapping[str, object] | None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Our keys of ``extra_args``, and the others."""
    ours = (*REQUEST_KEYS, CAPTURE_KEY, _FOUND_KEY)
    given = dict(extra_args or {})
    return {key: given.pop(key) for key in ours if key in given}, given


def pin(params: Any, found: Iterable[Found]) -> None:
    """Put the sets that were found for a request into vLLM's ``SamplingParams`` for the core."""
    sent = [msgspec.structs.astuple(one) for one in found]
    params.extra_args = {**params.extra_args, _FOUND_KEY: sent}


def pinned(params: Any) -> tuple[dict[str, object], list[Found]]:
    """The user's ``extra_args``, and the sets that were put beside them; none by raw requests."""
    given = dict(params.extra_args or {})
    return given, msgspec.convert(given.pop(_FOUND_KEY, []), list[Found])


def carry(params: Any, steered: Steered) -> None:
    """Put ``steered`` in place of the user's keys into vLLM's ``SamplingParams``."""
    _, others = split_keys(params.extra_args)
    params.extra_args = {**others, _STEERED: steered}


def carried(params: Any) -> Steered | None:
    """What an admitted request's parameters carry; a pooling request has None."""
    return None if params is None else (params.extra_args or {}).get(_STEERED)


def read(params: Any) -> Steered | None:
    """What a worker takes: as :func:`carried`, checked.

    Raises:
        RuntimeError: the request went past the engine core's check, so its sets are not loaded.
    """
    steered = carried(params)
    if steered is None:
        return None
    if not isinstance(steered, Steered) or any(use.slot < 0 for use in steered.sets):
        raise RuntimeError("a steered request reached the worker unchecked: the seam is not armed")
    return steered
