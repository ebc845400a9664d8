"""Keys of the prefix cache: KV that steering has changed is found by requests steered alike only.

A block's KV depends on steering at all positions up to its end, at any layer but the last, whose
output no later layer's KV is made from. So a block of a steered request is keyed as vLLM keys it up
to where steering begins, and from there on by vLLM's key and by how the positions up to the block's
end are steered. Requests share all that they have in common: a prompt, with requests that steer
what comes after it; one at the last layer, everything with everyone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from saif_kernels import Window
from saif_vllm.request import Steered, carried

Hasher = Callable[[Any], list[Any]]
_UNIFORM = Window(prompt=True)


class SteeredHasher:
    """vLLM's hasher of a request's new full blocks, aware of steering.

    Args:
        plain: vLLM's own; it chains on what ``request.block_hashes`` ends with.
        block_size: tokens that one hash stands for.
    """

    def __init__(self, plain: Hasher, block_size: int) -> None:
        self._plain, self._block_size = plain, block_size

    def __call__(self, request: Any) -> list[Any]:
        """Hashes of the full blocks of a vLLM ``Request`` behind ``request.block_hashes``."""
        steered = carried(request.sampling_params)
        if steered is None or not any(use.changes_kv for use in steered.sets):
            return self._plain(request)
        # vLLM chains each hash on the one before: on its own, which say nothing of steering.
        known = request.block_hashes
        plain = getattr(request, "saif_plain_hashes", [])[: len(known)]
        request.block_hashes = plain
        try:
            new = self._plain(request)
        finally:
            request.block_hashes = known
        request.saif_plain_hashes = plain + new
        return [
            self._keyed(block_hash, steered, request.num_prompt_tokens, len(plain) + i + 1)
            for i, block_hash in enumerate(new)
        ]

    def _keyed(self, block_hash: Any, steered: Steered, prompt_len: int, n_blocks: int) -> Any:
        key = steering_key(steered, prompt_len, n_blocks * self._block_size)
        return block_hash if key is None else hashlib.sha256(block_hash + key).digest()


def steering_key(steered: Steered, prompt_len: int, end: int) -> bytes | None:
    """What of a request's steering changed the KV of positions before ``end``; None: nothing."""
    window = steered.window
    if end < prompt_len:
        # The last prompt token, where the window counts from, lies beyond.
        if not window.prompt:
            return None
        where: object = "all"
    elif not window.prompt and end < prompt_len + window.start:
        return None
    else:
        where = "all" if window == _UNIFORM else (tuple(window), prompt_len)
    deep = sorted((use.content_hash, use.strength) for use in steered.sets if use.changes_kv)
    return msgspec.json.encode((deep, where))
