"""What Triton's interpreter gets wrong about bf16, put right; GPUs need none of it.

``test_interpreter.py`` fails when one of these has become unnecessary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_create_dot, _cast_impl = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    data = (handle.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return TensorHandle(data, tl.float32)


def _dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """The interpreter multiplies bf16 operands as 16-bit integers."""
    return _create_dot(self, _widened(a), _widened(b), d, *options)


def _cast(self: Any, src: Any, dst_type: Any) -> Any:
    """The interpreter cuts fp32 off to bf16; a GPU rounds to nearest, ties to even."""
    if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
        return _cast_impl(self, src, dst_type)
    bits = np.ascontiguousarray(src.data).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    data = np.where(np.isnan(src.data), quiet_nan, rounded).astype(np.uint16)
    return TensorHandle(data, tl.bfloat16)


def _with(create_dot: Any, cast_impl: Any) -> AbstractContextManager[object]:
    return mock.patch.multiple(InterpreterBuilder, create_dot=create_dot, cast_impl=cast_impl)


def _dot_by_place(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """Each result is off by up to 8 units in the last place, by its row and column in the tile."""
    product = _dot(self, a, b, d, *options)
    row, column = np.indices(product.data.shape)
    off = ((row * 5 + column * 11) % 17 - 8) * np.finfo(np.float32).eps
    return TensorHandle((product.data * (1 + off)).astype(product.data.dtype), product.dtype)


def rounded_by_place() -> AbstractContextManager[object]:
    """A dot's rounding depends on where in the tile a result is, as on hardware it may."""
    return _with(_dot_by_place, _cast)


def bf16_put_right() -> AbstractContextManager[object]:
    """Interpreted kernels inside multiply and round bf16 as a GPU does."""
    return _with(_dot, _cast)


def bf16_as_it_is() -> AbstractContextManager[object]:
    """The interpreter as Triton ships it, also inside ``bf16_put_right``."""
    return _with(_create_dot, _cast_impl)
