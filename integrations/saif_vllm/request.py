"""A request's way: validated by the front end, admitted by the engine core, read by the worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from saif_fast.request import REQUEST_KEYS, check_combination, parse_request
from saif_kernels import Window
from saif_vllm.config import SteeringConfig
from saif_vllm.sets import OfferedSets


class SetUse(msgspec.Struct, frozen=True):
    """One set in a request. Its content hash is what counts; the name is for messages."""

    name: str
    content_hash: str
    strength: float


class Steered(msgspec.Struct, frozen=True):
    """What a request asks for, as it travels to the workers under the key ``saif``.

    Attributes:
        sets: with strengths.
        window: where they apply.
        admitted: by the engine core, which has set the cache salt. A worker takes nothing else.
    """

    sets: tuple[SetUse, ...]
    window: Window
    admitted: bool = False


def resolve(
    extra_args: Mapping[str, object] | None,
    offered: OfferedSets | None,
    config: SteeringConfig | None,
) -> Steered | None:
    """Validate a user's ``extra_args``; None: not steered.

    Raises:
        ValueError: names what is available.
    """
    if offered is None or config is None:
        # Others' keys are not ours to judge where nothing of ours is in use.
        for key in extra_args or {}:
            if str(key).startswith("saif"):
                raise ValueError(
                    f"{key}: this engine does not steer; start it with saif_vllm.engine_args"
                )
        return None
    parsed = parse_request(
        extra_args,
        available=offered.sets,
        max_strength=config.max_strength,
        max_sets=config.max_sets_per_request,
    )
    if parsed is None:
        return None
    used = {name: offered.sets[name] for name, _ in parsed.sets}
    check_combination(used)
    uses = tuple(SetUse(name, used[name].content_hash, strength) for name, strength in parsed.sets)
    return Steered(uses, parsed.window)


def with_steering(extra_args: Mapping[str, object] | None, steered: Steered) -> dict[str, object]:
    """A copy of ``extra_args`` that carries ``steered`` in place of the user's own keys."""
    others = {key: value for key, value in (extra_args or {}).items() if key not in REQUEST_KEYS}
    return {**others, "saif": msgspec.to_builtins(steered)}


def admit(request: Any, offered: OfferedSets | None, config: SteeringConfig | None) -> None:
    """The engine core's check of an ``EngineCoreRequest``; sets its cache salt. In place.

    A request that did not come through our front end (a raw ``EngineCoreRequest``) still carries
    the user's keys and is resolved here.

    Raises:
        ValueError: as :func:`resolve`, or a set is not loaded.
    """
    params = request.sampling_params
    extra_args: dict[str, Any] = (params.extra_args if params is not None else None) or {}
    if not isinstance(extra_args.get("saif"), Mapping):
        steered = resolve(extra_args, offered, config)
    elif offered is None:
        raise ValueError("saif: this engine does not steer; start it with saif_vllm.engine_args")
    else:
        steered = msgspec.convert(extra_args["saif"], Steered)
    if steered is None or offered is None:
        return
    for use in steered.sets:
        if use.content_hash not in offered.by_hash:
            raise ValueError(f"set {use.name!r} has changed since the engine started")
    refuse_streaming_input(request)
    request.cache_salt = cache_salt(request.cache_salt, steered, offered, _prompt_len(request))
    # The parameters are the engine's own copy, but children of one request (n > 1) share the
    # dictionary: replace it.
    params.extra_args = with_steering(extra_args, msgspec.structs.replace(steered, admitted=True))


def refuse_streaming_input(request: Any) -> None:
    """Raise ValueError for a steered request whose prompt comes in pieces.

    vLLM keeps the first piece's cache salt for all of them, and where the prompt ends moves.
    """
    if request.resumable:
        raise ValueError("saif: expected a request with its whole prompt, got streaming input")


def _prompt_len(request: Any) -> int:
    prompt = request.prompt_token_ids
    return len(request.prompt_embeds if prompt is None else prompt)


def cache_salt(
    salt: str | None, steered: Steered, offered: OfferedSets, prompt_len: int
) -> str | None:
    """The prefix cache's salt: the user's own, and all that changes a block's content.

    At the last layer steering changes no KV: such a request shares the cache with everyone. Below
    it, what was generated (steered) in one turn of a chat is prompt (unsteered) in the next, so
    where the prompt ends counts too, unless all positions are steered alike.
    """
    uses = [use for use in steered.sets if offered.changes_kv(use.content_hash)]
    if not uses:
        return salt
    deep = sorted((use.content_hash, use.strength) for use in uses)
    alike = steered.window == Window(prompt=True)
    window = (tuple(steered.window), None if alike else prompt_len)
    content = msgspec.json.encode((salt, deep, window))
    return f"saif-{hashlib.sha256(content).hexdigest()}"


def read(extra_args: Mapping[str, object] | None) -> Steered | None:
    """What the worker reads.

    Raises:
        RuntimeError: the request went past the engine core's check, so its salt is not set.
    """
    asked = (extra_args or {}).get("saif")
    if asked is None:
        return None
    if not isinstance(asked, Mapping) or not asked.get("admitted"):
        raise RuntimeError("a steered request reached the worker unchecked: the seam is not armed")
    return msgspec.convert(asked, Steered)
