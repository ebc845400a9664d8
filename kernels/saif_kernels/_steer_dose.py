"""A token's dose, the squared lengths of its change and of its residual stream; and the caps on it.

``dose`` [>= T, DOSE_PARTS, 2] fp32 holds, for part p of a token's channels, ``(sum of change**2,
sum of x**2)``: change as it is added, in fp32 before the cast, x as the op reads it. Every program
stores what it steered itself, so that an entry proves its part was steered. Two marks need no room
of their own: the sum of x**2 is stored negative where the change was shortened, and both sums are
inf where change or x is not finite, so that nothing was added.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from saif_kernels._triton import jit, tl

DOSE_PARTS = 4  # the most parts that a launch cuts d_model into


def largest_norm(dtype: torch.dtype) -> float:
    """The longest residual stream that steering makes.

    In fp16 half of the largest number: the other half is for what later layers add to a channel.
    Elsewhere what a norm can still square and add up in fp32, with 2**48 to spare; streams of
    models are shorter than 2**20.
    """
    return 2.0**15 if dtype == torch.float16 else 2.0**40


@jit
def dose_at(
    p_dose,  # [T, DOSE_PARTS, 2] fp32
    i_t,  # int64: a token, or [BLOCK_T] of them
    i_part,
    DOSE_PARTS: tl.constexpr = DOSE_PARTS,
):
    """Where a part's sum of change**2 lies; that of x**2 is next to it."""
    return p_dose + (i_t * DOSE_PARTS + i_part) * 2


@jit
def marked(b_change2, b_x2, b_factor):
    """A part's sums with their marks, of a change multiplied by what ``shortened`` gave."""
    b_change2 = tl.where(b_factor < 0, float("inf"), b_change2 * b_factor * b_factor)
    b_x2 = tl.where(b_factor < 0, float("inf"), tl.where(b_factor < 1, -b_x2, b_x2))
    return b_change2, b_x2


@jit
def longest(b_x2, max_dose, LARGEST: tl.constexpr):
    """The longest change of a token whose sum of x**2 is ``b_x2``."""
    b_length = tl.sqrt(b_x2)
    b_longest = tl.maximum(LARGEST - b_length, 0.0)
    if max_dose is not None:
        b_longest = tl.minimum(b_longest, max_dose * b_length)
    return b_longest


@jit
def shortened(b_change2, b_x2, max_dose, LARGEST: tl.constexpr):
    """The factor with which a change is no longer than it may be; -1: it is not finite."""
    b_longest = longest(b_x2, max_dose, LARGEST)
    b_length = tl.sqrt(b_change2)
    b_factor = tl.where(b_length > b_longest, b_longest / b_length, 1.0)
    return tl.where((b_change2 < float("inf")) & (b_x2 < float("inf")), b_factor, -1.0)


@jit
def times(b_values, b_factor):
    """``b_values * b_factor``, 0 where the factor is not above 0."""
    return tl.where(b_factor > 0, b_values * b_factor, 0.0)


@jit
def rounded(b_values, DTYPE: tl.constexpr):
    """``b_values`` [...] fp32 in DTYPE; in fp16 no finite number becomes inf."""
    if DTYPE == tl.float16:
        b_values = tl.clamp(b_values, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return b_values.to(DTYPE)


def shortened_torch(
    change: Tensor, x: Tensor, n_parts: int, largest: float, max_dose: float | None
) -> tuple[Tensor, Tensor]:
    """The reference of the above.

    Args:
        change: [t, d_model], as the formula gives it.
        x: [t, d_model].
        n_parts: of the dose.
        largest: norm that no stream is made to exceed.
        max_dose: most |change| / |x|; None: no cap.

    Returns:
        The change to add [t, d_model], and the dose [t, n_parts, 2] fp32.
    """
    parts = [_parts(rows, n_parts) for rows in (change, x)]
    dose = torch.stack([torch.linalg.vecdot(part, part) for part in parts], -1)
    change2, x2 = dose.sum(1).unbind(1)
    x_length = x2.sqrt()
    longest = (largest - x_length).clamp_(min=0)
    if max_dose is not None:
        longest = torch.minimum(longest, max_dose * x_length)
    if ((change2 <= longest.square()) & (x2 < torch.inf)).all():  # NaN is not <=, nor <
        return change, dose.float()
    length = change2.sqrt()
    factor = torch.where(length > longest, longest / length, 1.0)[:, None]
    infinite = ~dose.isfinite().all(2).all(1, keepdim=True)
    factor = torch.where(infinite, 0.0, factor)
    change = torch.where(factor > 0, change * factor, 0.0)
    dose[..., 0] *= factor.square()
    dose[..., 1].copy_(torch.where(factor < 1, -dose[..., 1], dose[..., 1]))
    return change, torch.where(infinite[..., None], torch.inf, dose).float()


def _parts(rows: Tensor, n_parts: int) -> Tensor:
    """Rows [t, d_model] cut up: [t, n_parts, part_d], the last part filled up with 0."""
    padding = -rows.shape[1] % n_parts
    filled = pad(rows, (0, padding)) if padding else rows
    return filled.reshape(len(rows), n_parts, filled.shape[1] // n_parts)


def rounded_torch(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The reference of ``rounded``."""
    if dtype == torch.float16:
        values = torch.where(values.isfinite(), values.clamp(-65504.0, 65504.0), values)
    return values.to(dtype)
