"""The dose of a token: the norm of its change over the norm of its residual stream x.

``dose`` [>= T, DOSE_PARTS, 2] fp32 holds, for part p of a token's channels, ``(sum of change**2,
sum of x**2)``: change as it is added, in fp32 before the cast, and x as the op reads it. Each
program writes the entry of the channels that it steered, so a written entry is evidence. Two marks
lie in the same numbers: the sum of x**2 is negative where the change was shortened, and both sums
are inf where change or x is not finite, so that nothing was added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl

DOSE_PARTS = 4  # the most parts that a call cuts a token's channels into


def largest_norm(dtype: torch.dtype) -> float:
    """Return the norm above which steering brings no residual stream of ``dtype``.

    In fp16 it is half of the largest number, because later layers add to a channel, too. Elsewhere
    a norm can still square and add up such a stream in fp32, with 2**48 to spare; streams of models
    are shorter than 2**20.
    """
    return 2.0**15 if dtype == torch.float16 else 2.0**40


@jit
def dose_at(
    p_dose,  # [T, DOSE_PARTS, 2] fp32
    i_t,  # int64: a token, or [BLOCK_T] of them
    i_part,
    DOSE_PARTS: tl.constexpr = DOSE_PARTS,
):
    """Return the pointer to a part's sum of change**2; the sum of x**2 lies next to it."""
    return p_dose + (i_t * DOSE_PARTS + i_part) * 2


@jit
def marked(b_change2, b_x2, b_factor):
    """Return a part's marked sums for a change that is multiplied by ``shortened``'s factor."""
    b_change2 = tl.where(b_factor < 0, float("inf"), b_change2 * b_factor * b_factor)
    b_x2 = tl.where(b_factor < 0, float("inf"), tl.where(b_factor < 1, -b_x2, b_x2))
    return b_change2, b_x2


@jit
def longest(b_x2, max_dose, LARGEST: tl.constexpr):
    """Return the norm that the change of a token may have if its sum of x**2 is ``b_x2``."""
    b_length = tl.sqrt(b_x2)
    b_longest = tl.maximum(LARGEST - b_length, 0.0)
    if max_dose is not None:
        b_longest = tl.minimum(b_longest, max_dose * b_length)
    return b_longest


@jit
def shortened(b_change2, b_x2, max_dose, LARGEST: tl.constexpr):
    """Return the factor that makes a change as short as it must be; -1: it is not finite."""
    b_longest = longest(b_x2, max_dose, LARGEST)
    b_length = tl.sqrt(b_change2)
    b_factor = tl.where(b_length > b_longest, b_longest / b_length, 1.0)
    return tl.where((b_change2 < float("inf")) & (b_x2 < float("inf")), b_factor, -1.0)


@jit
def times(b_values, b_factor):
    """Return ``b_values * b_factor``, 0 where the factor is not above 0."""
    return tl.where(b_factor > 0, b_values * b_factor, 0.0)


@jit
def rounded(b_values, DTYPE: tl.constexpr):
    """Cast ``b_values`` [...] fp32 to DTYPE; in fp16 no finite number becomes inf."""
    if DTYPE == tl.float16:
        b_values = tl.clamp(b_values, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return b_values.to(DTYPE)


def rounded_torch(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as ``rounded`` does, in torch."""
    if dtype == torch.float16:
        values = torch.where(values.isfinite(), values.clamp(-65504.0, 65504.0), values)
    return values.to(dtype)
