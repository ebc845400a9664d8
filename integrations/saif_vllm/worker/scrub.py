"""Scrubbing of a KV cache: numbers that are not finite become 0.

Attention multiplies the entries beyond a request's end by 0, and 0 times NaN is NaN. So a block
that is used again must hold finite numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# By cache dtype: the bits, without the sign, of the largest finite 8-bit float. torch has no
# arithmetic for these.
_LARGEST_FINITE = {"fp8": 0x7E, "fp8_e4m3": 0x7E, "fp8_inc": 0x7E, "fp8_e5m2": 0x7B}
_FLOATS = ("auto", "half", "float16", "bfloat16", "float", "float32")


def can_scrub(cache_dtype: str) -> bool:
    """Return whether :func:`scrub_kv` knows caches of this dtype, as vLLM names it."""
    return cache_dtype in _LARGEST_FINITE or cache_dtype in _FLOATS


def scrub_kv(kv_caches: object, cache_dtype: str) -> None:
    """Put 0 in place of every number that is not finite, in place, whatever the blocks' layout.

    Args:
        kv_caches: a tensor, or nested lists of tensors.
        cache_dtype: vLLM's name of their dtype; :func:`can_scrub` must know it.
    """
    if isinstance(kv_caches, list | tuple):
        for cache in kv_caches:
            scrub_kv(cache, cache_dtype)
    elif isinstance(kv_caches, Tensor):
        if kv_caches.element_size() > 1:
            torch.nan_to_num_(kv_caches, nan=0.0, posinf=0.0, neginf=0.0)
        elif cache_dtype in _LARGEST_FINITE:  # else bytes that are no floats, as an indexer's
            bits = kv_caches.view(torch.uint8)
            # In pieces, because the memory has no room for a mask of a whole cache.
            longest = max(range(bits.ndim), key=lambda dim: bits.shape[dim])
            for piece in bits.split(256, longest):
                piece.masked_fill_((piece & 0x7F) > _LARGEST_FINITE[cache_dtype], 0)
