"""Parsing of a request: a user's ``extra_args``, checked against the sets on offer.

A request is checked three times: over HTTP, because an answer of 400 must precede the stream; in
the front end, for callers in Python; in the core, because not every front end is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from saif_fast.latent_set import LatentSet
from saif_fast.request import (
    check_combination,
    check_length,
    check_reached,
    parse_request,
    with_defaults,
)
from saif_fast.values import plain, quoted
from saif_kernels import Window
from saif_vllm.catalog import Lookup, Offered, SetCatalog
from saif_vllm.config import SteeringConfig
from saif_vllm.request import CAPTURE_KEY

# Fields of SamplingParams that ask for log-probabilities of the prompt. vLLM's other prompt_logprob
# fields only refine what these ask for.
PROMPT_LOGPROBS = ("prompt_logprobs", "prompt_logprob_token_ids")


class Parsed(NamedTuple):
    """A user's request for steering, with the sets that its names stand for."""

    sets: tuple[tuple[Offered, float], ...]  # with strengths
    window: Window
    capture: int  # index in the store of captured residuals; -1: none
    scope: str = "generated"  # as given, for messages


def parse_extra_args(
    extra_args: Mapping[str, object] | None,
    catalog: SetCatalog | None,
    lookup: Lookup | None = None,
) -> Parsed | None:
    """Validate a user's ``extra_args``.

    Args:
        extra_args: of ``SamplingParams``.
        catalog: the sets on offer; None: this engine does not steer.
        lookup: finds the request's sets; None: the lookup of the request that is being served.

    Returns:
        None: the request asks for nothing.

    Raises:
        ValueError: it asks for something that is not available; the message names what is.
    """
    if catalog is None:
        # This engine does not steer, so only reject keys that are clearly meant for us; other
        # plugins may use theirs.
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
    asked = with_defaults(asked, {name: each.defaults for name, each in latent_sets.items()})
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
    """Raise ValueError if the sets never fit together: the request would wait for ever."""
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


def check_scope(asked: Parsed, prompt_logprobs: bool, max_tokens: int | None = None) -> None:
    """Reject scopes whose result would mislead.

    Args:
        asked: what the request asks for.
        prompt_logprobs: whether the request wants log-probabilities of its prompt.
        max_tokens: upper bound of generated tokens; None: unknown.

    Raises:
        ValueError: the request wants log-probabilities of a prompt that is not steered, which an
            evaluation would take for the steered model's; it steers a prompt, and no output depends
            on that; or its window begins after the last generated token.
    """
    if asked.sets and prompt_logprobs and not asked.window.prompt:
        raise ValueError(
            "saif_scope: expected 'all' or 'prompt' where log-probabilities of the prompt are "
            "asked for (prompt_logprobs, or echo with logprobs), got 'generated': they would be "
            "the unsteered model's"
        )
    window = asked.window
    prompt_shows = prompt_logprobs or any(offered.changes_kv for offered, _ in asked.sets)
    if max_tokens is not None:
        check_reached(window, max_tokens, prompt_shows=prompt_shows)
    if window.prompt and window.stop == 1 and not prompt_shows:
        given = (
            repr(asked.scope) if asked.scope == "prompt" else f"{asked.scope!r} up to saif_stop 1"
        )
        raise ValueError(
            "saif_scope: expected 'generated', or 'all' with no saif_stop or a later one, for sets "
            f"at the last layer, got {given}, which could change nothing but the first token; it "
            "needs prompt_logprobs or a set at a lower layer"
        )
