"""Prefix-cache keys that include steering: KV is shared only by requests that are steered alike.

A block's KV depends on steering at all positions up to the block's end, at any layer but the last:
no later layer's KV is made from the last layer's output. So a block of a steered request has vLLM's
own key up to the position where steering begins. From there on, its key also says how the positions
up to the block's end are steered. A prompt is therefore shared with any request that is steered
only after it, and a request steered only at the last layer shares everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from saif_kernels import Window
from saif_vllm.request import Steered, get_steered

Hasher = Callable[[Any], list[Any]]
_UNIFORM = Window(prompt=True)


class SteeredHasher:
    """vLLM's hasher of a request's new full blocks, with steering added to the hashes.

    Args:
        plain: vLLM's own hasher; it chains on the last of ``request.block_hashes``.
        block_size: tokens per hash.
    """

    def __init__(self, plain: Hasher, block_size: int) -> None:
        self._plain, self._block_size = plain, block_size

    def __call__(self, request: Any) -> list[Any]:
        """Hash the full blocks of a vLLM ``Request`` that ``request.block_hashes`` lacks."""
        steered = get_steered(request.sampling_params)
        if steered is None or not any(use.changes_kv for use in steered.sets):
            return self._plain(request)
        # vLLM chains each block hash on the previous one. Give it its own (unsteered) hashes to
        # chain on, and add steering to the result.
        known = request.block_hashes
        plain = getattr(request, "saif_plain_hashes", [])[: len(known)]
        request.block_hashes = plain
        try:
            new = self._plain(request)
        finally:
            request.block_hashes = known
        request.saif_plain_hashes = plain + new
        return [
            self._with_steering(block_hash, steered, request.num_prompt_tokens, len(plain) + i + 1)
            for i, block_hash in enumerate(new)
        ]

    def _with_steering(
        self, block_hash: Any, steered: Steered, prompt_len: int, n_blocks: int
    ) -> Any:
        key = steering_key(steered, prompt_len, n_blocks * self._block_size)
        return block_hash if key is None else hashlib.sha256(block_hash + key).digest()


def steering_key(steered: Steered, prompt_len: int, end: int) -> bytes | None:
    """Return what steering did to the KV of the positions before ``end``; None: nothing.

    Requests with the same key, and the same tokens, have the same KV there.
    """
    window = steered.window
    if end < prompt_len:
        # The window's positions count from the last prompt token, which is not before `end`.
        if not window.prompt:
            return None
        where: object = "all"
    elif not window.prompt and end < prompt_len + window.start:
        return None
    else:
        where = "all" if window == _UNIFORM else (tuple(window), prompt_len)
    below_last = sorted((use.content_hash, use.strength) for use in steered.sets if use.changes_kv)
    return msgspec.json.encode((below_last, where))
