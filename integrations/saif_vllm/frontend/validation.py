"""Validation in the front end, while a request can still be answered with HTTP 400."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.exceptions import VLLMValidationError

from saif_fast.request import check_keys
from saif_fast.values import plain, quoted
from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend.metrics import count_refusal
from saif_vllm.parsing import PROMPT_LOGPROBS, Parsed, check_scope, parse_extra_args
from saif_vllm.request import split_keys


class SteeringRequestError(VLLMValidationError, ValueError):
    """Error of a request for steering that cannot be had; vLLM's servers answer with HTTP 400."""


@contextmanager
def request_errors() -> Iterator[None]:
    """Turn a ValueError of ours into a :class:`SteeringRequestError`, and count it."""
    try:
        yield
    except ValueError as error:
        count_refusal()
        raise SteeringRequestError(str(error)) from error


def with_plain_values(params: Any) -> Any:
    """Return vLLM's ``SamplingParams`` with the values of our keys made :func:`plain`.

    If there are any, the result is a copy, because the caller may use ``params`` for other
    requests.
    """
    keys, _ = split_keys(getattr(params, "extra_args", None))  # PoolingParams have none
    return with_keys(params, {key: plain(value) for key, value in keys.items()}) if keys else params


def with_keys(params: Any, keys: Mapping[str, object]) -> Any:
    """Return a copy of vLLM's ``SamplingParams`` with ``keys`` in place of our keys in it."""
    _, others = split_keys(params.extra_args)
    copied = copy.copy(params)
    copied.extra_args = {**others, **keys}
    return copied


def check_parameters(params: Any, catalog: SetCatalog | None) -> Parsed | None:
    """Validate vLLM's ``SamplingParams`` or ``PoolingParams``.

    Args:
        params: with plain values, see :func:`with_plain_values`.
        catalog: the sets on offer; None: this engine does not steer.

    Returns:
        None: they ask for no steering.

    Raises:
        ValueError: they ask for something that is not available; the message names what is.
    """
    from vllm.sampling_params import SamplingParams

    if isinstance(params, SamplingParams):
        asked = parse_extra_args(params.extra_args, catalog)
        if asked is not None and catalog is not None:
            max_tokens = params.max_tokens or catalog.max_tokens
            check_scope(asked, _wants_prompt_logprobs(params), max_tokens)
        return asked
    if parse_extra_args(getattr(params, "extra_kwargs", None), catalog) is not None:
        raise ValueError("saif: expected a generation request, got a pooling request")
    return None


def _wants_prompt_logprobs(params: Any) -> bool:
    return any(getattr(params, name, None) is not None for name in PROMPT_LOGPROBS)


def check_session(params: Any, catalog: SetCatalog | None) -> Parsed | None:
    """Validate as :func:`check_parameters` does, for a prompt that arrives in pieces.

    Raises:
        ValueError: also for sets below the last layer. Each piece moves the prompt's end, where the
            window counts from, but the KV of the earlier pieces stays as it was steered.
    """
    asked = check_parameters(params, catalog)
    for offered, _ in asked.sets if asked else ():
        if offered.changes_kv:
            raise ValueError(
                f"saif: expected sets at the last layer with streaming input, got "
                f"{offered.name!r}, which edits layer {offered.latent_set.layers[0]}"
            )
    return asked


async def checked_pieces(
    pieces: AsyncIterator[Any], params: Any, catalog: SetCatalog | None
) -> AsyncIterator[Any]:
    """Yield the pieces of a streaming input (vLLM's ``StreamingInput``), each one checked.

    A session keeps the sets it started with, even if the files change. Later pieces may repeat the
    same steering arguments, nothing else.

    Args:
        pieces: with parameters of their own, or None for the session's.
        params: ``SamplingParams`` of the session, with plain values.
        catalog: the sets on offer; None: this engine does not steer.

    Raises:
        SteeringRequestError: a piece asks for other steering than its session.
    """
    with request_errors():
        asked = check_session(params, catalog)
    keys, _ = split_keys(params.extra_args)
    async for piece in pieces:
        own = piece.sampling_params
        if own is not None:
            with request_errors():
                if catalog is not None:
                    check_keys(own.extra_args)
                if asked is not None:
                    check_scope(asked, _wants_prompt_logprobs(own), own.max_tokens)
                _check_same(own.extra_args, keys)
            if keys:
                # The session's values: the piece's own are equal to them, but may not be plain.
                piece = copy.copy(piece)
                piece.sampling_params = with_keys(own, keys)
        yield piece


def _check_same(extra_args: Mapping[str, object] | None, keys: Mapping[str, object]) -> None:
    own, _ = split_keys(extra_args)
    for key in (*own, *keys):
        if key not in own or key not in keys or plain(own[key]) != keys[key]:
            raise ValueError(
                f"{key}: expected the same in all pieces of a streaming input and in the call that "
                f"began it, got {quoted(own.get(key))} after {quoted(keys.get(key))}"
            )
