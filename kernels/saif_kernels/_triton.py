"""Triton where it exists. Without it (macOS) this package imports, and its ops run in torch.

Kernels of this package share one vocabulary. Prefixes of their locals: ``i_`` a program's index,
``o_`` offsets within a block, ``m_`` a mask, ``p_`` a pointer (its shape and dtype in a comment),
``b_`` a loaded block. Sizes and block sizes are upper case: ``D`` = d_model, ``M`` = pairs of a
request row, ``BLOCK_T`` tokens, ``BLOCK_K`` latents, ``BLOCK_D`` channels, ``BLOCK_M`` pairs. Sizes
that several functions need are one named tuple, ``SIZES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["compiles_in_time", "jit", "next_power_of_2", "tl", "warp_size"]

tl: Any
jit: Any

try:
    from triton import jit as _jit
    from triton import language as _language
except ImportError:  # Triton has wheels for Linux only
    tl = None

    def jit(function: Any = None, **options: Any) -> Any:
        """Stand in for ``triton.jit``, with or without options; the kernel is never launched."""
        return function if function is not None else lambda kernel: kernel

else:
    jit, tl = _jit, _language


@contextmanager
def compiles_in_time() -> Iterator[None]:
    """Expect kernels to be compiled inside: no hook of Triton reports them as compiled late."""
    if tl is None:
        yield
        return
    from triton import knobs

    with knobs.runtime.scope():
        knobs.runtime.jit_post_compile_hook = None
        yield


def warp_size() -> int:
    """Return the number of threads of a warp: 64 on AMD's data-centre GPUs, else 32."""
    return 32 if torch.version.hip is None else 64


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least ``n`` (n >= 1)."""
    return 1 << (n - 1).bit_length()
