"""A token's dose, the squared lengths of its change and of its residual stream; and the cap on it.

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


def cap_torch(change: Tensor, x: Tensor, max_dose: float) -> Tensor:
    """``change`` [t, d_model], of which no token's is longer than ``max_dose * |x|``."""
    length, most = change.norm(dim=1), max_dose * x.norm(dim=1)
    return change * torch.where(length > most, most / length, 1.0)[:, None]


@jit(do_not_specialize=["n_tokens"])
def _cap_kernel(
    p_dose,  # [T, DOSE_PARTS, 2] fp32 of steered tokens; its changes are written
    p_row,  # [T] int32
    p_scale,  # [T] fp32
    p_capped,  # [T] fp32, written
    max_dose,
    n_tokens,
    N_PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    DOSE_PARTS: tl.constexpr = DOSE_PARTS,
):
    """Program: BLOCK_T tokens."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    b_row = tl.load(p_row + o_t, mask=o_t < n_tokens, other=-1)
    b_scale = tl.load(p_scale + o_t, mask=b_row >= 0, other=0.0)
    o_part = tl.arange(0, DOSE_PARTS)[None, :]
    m_part = (b_scale != 0)[:, None] & (o_part < N_PARTS)
    p_part = dose_at(p_dose, o_t[:, None], o_part)
    b_change2 = tl.load(p_part, mask=m_part, other=0.0)
    b_length = tl.sqrt(tl.sum(b_change2, axis=1))
    b_most = max_dose * tl.sqrt(tl.sum(tl.load(p_part + 1, mask=m_part, other=0.0), axis=1))
    b_factor = tl.where(b_length > b_most, b_most / b_length, 1.0)
    tl.store(p_capped + o_t, b_scale * b_factor, mask=o_t < n_tokens)
    b_square = (b_factor * b_factor)[:, None]
    # Infinite sums are capped to 0, too.
    tl.store(p_part, tl.where(b_square > 0, b_change2 * b_square, 0.0), mask=m_part)


def capped_scale(
    dose: Tensor,
    token_row: Tensor,
    token_scale: Tensor,
    max_dose: float,
    n_tokens: int,
    n_parts: int,
) -> Tensor:
    """Scales [T] fp32 with which no dose is above ``max_dose``.

    Args:
        dose: [>= T, DOSE_PARTS, 2] fp32 as the uncapped scales give it; made that of the capped.
        token_row: [>= T] int32.
        token_scale: [>= T] fp32.
        max_dose: |change| / |x|.
        n_tokens: T.
        n_parts: that were written.
    """
    capped = dose.new_empty(n_tokens)
    block_t = 32
    _cap_kernel[(-(-n_tokens // block_t),)](
        p_dose=dose,
        p_row=token_row,
        p_scale=token_scale,
        p_capped=capped,
        max_dose=max_dose,
        n_tokens=n_tokens,
        N_PARTS=n_parts,
        BLOCK_T=block_t,
        num_warps=1,
    )
    return capped
