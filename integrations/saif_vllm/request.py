"""A request's way: validated by the front end, admitted by the engine core, read by the worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from saif_fast.latent_set import LatentSet
from saif_fast.request import (
    REQUEST_KEYS,
    check_combination,
    check_length,
    parse_request,
    plain,
    quoted,
)
from saif_kernels import Window
from saif_vllm.catalog import Found, Lookup, Offered, SetCatalog
from saif_vllm.config import SteeringConfig

CAPTURE_KEY = "saif_capture"  # of identification, see identification.py
_FOUND_KEY = "saif_found"  # the sets, from front end to core; in no user's request
_STEERED = "saif"  # where the user's string lay; anything but a Steered was never admitted


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


class Parsed(NamedTuple):
    """What a user's ``extra_args`` ask for."""

    sets: tuple[tuple[Offered, float], ...]  # with strengths
    window: Window
    capture: int
    scope: str = "generated"  # as given, for messages


def parse(
    extra_args: Mapping[str, object] | None,
    catalog: SetCatalog | None,
    lookup: Lookup | None = None,
) -> Parsed | None:
    """Validate a user's ``extra_args``; None: nothing is asked for.

    Args:
        catalog: None: this engine does not steer.
        lookup: of the request's sets; None: that of the request that is being served.

    Raises:
        ValueError: names what is available.
    """
    if catalog is None:
        # Others' keys are not ours to judge where nothing of ours is in use.
        for key in extra_args or {}:
            if str(key).startswith("saif"):
                raise ValueError(
                    f"{quoted(key)}: this engine does not steer; start it with "
                    "saif_vllm.engine_args"
                )
        return None
    lookup = catalog.lookup() if lookup is None else lookup
    others = dict(extra_args or {})
    capture = _capture(others.pop(CAPTURE_KEY, None), catalog.config.max_captures)
    asked = parse_request(
        others,
        available=lookup,
        max_strength=catalog.config.max_strength,
        max_sets=catalog.config.max_sets_per_request,
    )
    if asked is None:
        return None if capture < 0 else Parsed((), Window(), capture)
    sets = tuple((lookup[name], strength) for name, strength in asked.sets)
    latent_sets = {offered.name: offered.latent_set for offered, _ in sets}
    check_combination(latent_sets)
    check_length(
        ((offered.latent_set, strength) for offered, strength in sets), catalog.model.dtype
    )
    _check_room(latent_sets.values(), catalog.config)
    return Parsed(sets, asked.window, capture, asked.scope)


def _capture(value: object, max_captures: int) -> int:
    value = plain(value)
    if value is None:
        return -1
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < max_captures:
        raise ValueError(
            f"{CAPTURE_KEY}: expected an integer from 0 to {max_captures - 1} (the engine's "
            f"max_captures is {max_captures}), got {quoted(value)}"
        )
    return value


def _check_room(latent_sets: Iterable[LatentSet], config: SteeringConfig) -> None:
    """Raise ValueError for a request that would wait for ever: its sets never fit together."""
    sets = {found.content_hash: found for found in latent_sets}
    if len(sets) > config.max_sets:
        raise ValueError(f"max_sets: expected at most {config.max_sets} sets, got {len(sets)}")
    for layer in config.layers:
        live = sum(found.n_live.get(layer, 0) for found in sets.values())
        if live > config.max_latents:
            raise ValueError(
                f"max_latents: expected at most {config.max_latents} live latents at layer {layer} "
                f"in a request, got {live}"
            )


def split_keys(
    extra_args: Mapping[str, object] | None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Our keys of ``extra_args``, and the others."""
    ours = (*REQUEST_KEYS, CAPTURE_KEY, _FOUND_KEY)
    given = dict(extra_args or {})
    return {key: given.pop(key) for key in ours if key in given}, given


def pin(params: Any, asked: Parsed) -> None:
    """Put the sets that were found for a request into vLLM's ``SamplingParams`` for the core."""
    found = [msgspec.structs.astuple(offered.found) for offered, _ in asked.sets]
    params.extra_args = {**params.extra_args, _FOUND_KEY: found}


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
