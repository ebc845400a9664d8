"""A token's dose: the squared lengths of its change and of its residual stream.

``dose`` [>= T, DOSE_PARTS, 2] fp32 holds, for part p of a token's channels, ``(sum of change**2,
sum of x**2)``: change as it is in fp32 before the cast, x as the op reads it. Every program stores
what it steered itself, so that an entry proves its part was steered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from saif_kernels._triton import jit, tl

DOSE_PARTS = 4  # the most parts that a launch cuts d_model into


@jit
def dose_at(
    p_dose,  # [T, DOSE_PARTS, 2] fp32
    i_t,  # int64: a token, or [BLOCK_T] of them
    i_part,
    DOSE_PARTS: tl.constexpr = DOSE_PARTS,
):
    """Where a part's sum of change**2 lies; that of x**2 is next to it."""
    return p_dose + (i_t * DOSE_PARTS + i_part) * 2


def dose_torch(change: Tensor, x: Tensor, n_parts: int) -> Tensor:
    """The dose of tokens [t, d_model] whose channels are cut in n_parts: [t, n_parts, 2] fp32."""
    part_d = -(-change.shape[1] // n_parts)
    padding = (0, n_parts * part_d - change.shape[1])
    parts = [pad(rows, padding).unflatten(1, (n_parts, part_d)) for rows in (change, x)]
    return torch.stack([part.square().sum(-1) for part in parts], -1).float()
