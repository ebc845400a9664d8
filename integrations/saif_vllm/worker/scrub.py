"""A KV cache is cleared of what is not finite.

Attention multiplies what lies behind a request's end by 0, and 0 times NaN is NaN. So a block that
is used again must hold finite numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The bits of 8-bit floats, for which torch has no arithmetic, but their sign.
_LARGEST_FINITE = {"fp8": 0x7E, "fp8_e4m3": 0x7E, "fp8_inc": 0x7E, "fp8_e5m2": 0x7B}
_FLOATS = ("auto", "half", "float16", "bfloat16", "float", "float32")


def can_scrub(cache_dtype: str) -> bool:
    """Whether :func:`scrub` knows caches of this dtype, as vLLM names it."""
    return cache_dtype in _LARGEST_FINITE or cache_dtype in _FLOATS


def scrub(kv_caches: object, cache_dtype: str) -> None:
    """Put 0 where a worker's KV cache holds what is not finite, whatever the layout of its blocks.

    Args:
        kv_caches: tensors, in lists or alone.
        cache_dtype: vLLM's name of how they hold numbers; one that :func:`can_scrub` knows.
    """
    if isinstance(kv_caches, list | tuple):
        for cache in kv_caches:
            scrub(cache, cache_dtype)
    elif isinstance(kv_caches, Tensor):
        if kv_caches.element_size() > 1:
            torch.nan_to_num_(kv_caches, nan=0.0, posinf=0.0, neginf=0.0)
        elif cache_dtype in _LARGEST_FINITE:  # else bytes of another kind, as an indexer's
            bits = kv_caches.view(torch.uint8)
            # In pieces: the memory has no room for masks of a whole cache.
            longest = max(range(bits.ndim), key=lambda dim: bits.shape[dim])
            for piece in bits.split(256, longest):
                piece.masked_fill_((piece & 0x7F) > _LARGEST_FINITE[cache_dtype], 0)
