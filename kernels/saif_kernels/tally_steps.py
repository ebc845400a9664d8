"""What each request was steered by, added up on the device after every step."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._steer_dose import DOSE_PARTS
from saif_kernels._triton import jit, next_power_of_2, tl
from saif_kernels.rows import copy_to

# First columns of a row of Tally.table; L sums and L maxima of doses follow.
PLANNED, STEERED, SHORTENED, NONFINITE, LAST, N_COUNTS = range(6)


class Tally:
    """N request rows of counts and doses, and what the ops of a step leave for them.

    Allocated once and filled in place, so that a CUDA graph may keep the pointers. All columns of a
    row lie in one table, so that it is cleared, or copied to the host, in one copy; ``counts``,
    ``dose_sum`` and ``dose_max`` are views of it. The way of a step::

        prepare_steps(..., token_fresh=tally.token_fresh[:T], counts=tally.counts)
        steer_(..., dose=tally.dose[l])  # in every hooked layer l
        tally_steps(token_row[:T], tally)  # before the next prepare_steps

    Args:
        table: [N, 5 + 2 * L] int32, contiguous; fp32 columns hold the bits of their values.
        token_fresh: [max_tokens] int32.
        dose: [L, max_tokens, DOSE_PARTS, 2] fp32, contiguous, -1.
        missed: [1] int32.

    Attributes:
        table, token_fresh, dose: as given.
        missed: [1] int32, tokens that were to be steered and at some layer were not; never reset.
        counts: [N, 5] int32: tokens PLANNED; tokens STEERED, of which some have a SHORTENED change;
            tokens of a NONFINITE change or stream, which were not; and the highest position counted
            (LAST), -1 at first.
        dose_sum: [N, L] fp32, sum of the relative doses |change| / |x| of the steered tokens.
        dose_max: [N, L] fp32, the largest of them.
    """

    def __init__(self, table: Tensor, token_fresh: Tensor, dose: Tensor, missed: Tensor) -> None:
        self.table, self.token_fresh, self.dose, self.missed = table, token_fresh, dose, missed
        self.counts, self.dose_sum, self.dose_max = columns(table)
        self._cleared = torch.zeros(table.shape[1], dtype=torch.int32)
        self._cleared[LAST] = -1

    @classmethod
    def allocate(
        cls, n_layers: int, max_tokens: int, max_requests: int, device: torch.device | str
    ) -> Tally:
        """Cleared rows, and no dose written."""
        shape = (max_requests, N_COUNTS + 2 * n_layers)
        tally = cls(
            table=torch.zeros(shape, dtype=torch.int32, device=device),
            token_fresh=torch.full((max_tokens,), -1, dtype=torch.int32, device=device),
            dose=torch.full((n_layers, max_tokens, DOSE_PARTS, 2), -1.0, device=device),
            missed=torch.zeros(1, dtype=torch.int32, device=device),
        )
        tally.counts[:, LAST] = -1
        return tally

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name; the other columns are views of them."""
        names = ("table", "token_fresh", "dose", "missed")
        return {name: getattr(self, name) for name in names}

    def clear(self, row: int) -> None:
        """Begin ``row`` anew, for another request. One copy, for which the host does not wait."""
        copy_to(self.table[row], self._cleared)


def columns(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [N, 5] int32, sums and maxima of doses [N, L] fp32: views of a tally's table."""
    dose_sum, dose_max = table[:, N_COUNTS:].view(torch.float32).tensor_split(2, dim=1)
    return table[:, :N_COUNTS], dose_sum, dose_max


def tally_steps(token_row: Tensor, tally: Tally) -> None:
    """Count what a step has steered; run once after it, before the next ``prepare_steps``.

    Semantics: a token of row >= 0 is *planned*. It is *missed* if at some layer part 0 of its dose
    was not written, else *nonfinite* if some dose is inf, else *steered*, and *shortened* if some
    sum of x**2 is negative. It is *fresh* if ``token_fresh`` is >= 0: positions that come again, as
    after a preemption or a rejected draft, are not counted twice. With the sums over parts that
    were written ::

        dose_l  = sqrt(sum of change**2 / sum of |x**2|) at layer l;  0 where the change is 0
        missed += 1                                                     per missed token
        counts[row, NONFINITE] += 1                                     per nonfinite token
        counts[row, PLANNED] += 1;  counts[row, LAST] max= token_fresh  per fresh token
        counts[row, STEERED] += 1;  counts[row, SHORTENED] += shortened    per fresh, steered token
        dose_sum[row, l] += dose_l;  dose_max[row, l] max= dose_l       per fresh, steered token

    so that a change of an all-zero x, of which there is none under a ``max_dose``, counts as
    nonfinite. Then every dose of the T tokens is reset to -1.

    No value leaves the device. On a GPU the order of the sums of dose_sum, within a step, is not
    fixed.

    Args:
        token_row: [T] int32, as the step's ``prepare_steps`` left it; T of the padded batch.
        tally: written in place.

    Raises:
        ValueError: a shape or dtype does not fit; nothing was written.
    """
    max_tokens = tally.token_fresh.shape[0]
    fits = token_row.ndim == 1 and token_row.dtype == torch.int32 and token_row.is_contiguous()
    if not fits or token_row.shape[0] > max_tokens:
        raise ValueError(
            f"token_row: expected at most [{max_tokens}] {torch.int32}, contiguous, "
            f"got {list(token_row.shape)} {token_row.dtype} of strides {token_row.stride()}"
        )
    torch.ops.saif.tally_steps_(token_row, tally.token_fresh, tally.dose, tally.table, tally.missed)


def tally_steps_torch(
    token_row: Tensor, token_fresh: Tensor, dose: Tensor, table: Tensor, missed: Tensor
) -> None:
    """The reference of :func:`tally_steps`, over ``table`` [N, 5 + 2 * L] int32 of the tally."""
    n_tokens = token_row.shape[0]
    counts, dose_sum, dose_max = columns(table)
    of_step, position = dose[:, :n_tokens], token_fresh[:n_tokens]
    part_written = ~(of_step[..., 0] < 0)  # [L, T, DOSE_PARTS]; NaN is written
    change, x = torch.where(part_written[..., None], of_step.abs(), 0.0).sum(2).unbind(-1)  # [L, T]
    relative = torch.where(change == 0, 0.0, (change / x).sqrt())
    finite = relative.isfinite().all(0)
    shortened = (part_written & (of_step[..., 1] < 0)).any(2).any(0)
    planned = token_row >= 0
    written = part_written[:, :, 0].all(0)
    missed += (planned & ~written).sum()
    # Tokens that do not count add nothing to a row of their own or to row 0.
    row = token_row.clamp(min=0).long()
    fresh = planned & (position >= 0)
    counted = fresh & written & finite
    nonfinite = planned & written & ~finite
    columns_of_token = torch.stack([fresh, counted, counted & shortened, nonfinite], 1)
    counts[:, :LAST].index_add_(0, row, columns_of_token.int())
    counts[:, LAST].scatter_reduce_(0, row, torch.where(fresh, position, -1), "amax")
    relative = torch.where(counted, relative, 0.0).T
    dose_sum.index_add_(0, row, relative)
    dose_max.scatter_reduce_(0, row[:, None].expand_as(relative), relative, "amax")
    of_step.fill_(-1.0)


@jit(do_not_specialize=["dose_stride"])
def _tally_kernel(
    p_token_row,  # [T] int32
    p_token_fresh,  # [>= T] int32
    p_dose,  # [L, >= T, DOSE_PARTS, 2] fp32, read and reset
    p_table,  # [N, TABLE_STRIDE] int32, Tally.table, written
    p_values,  # [N, TABLE_STRIDE] fp32, the same memory
    p_missed,  # [1] int32, written
    dose_stride,  # of a layer
    TABLE_STRIDE: tl.constexpr,
    L: tl.constexpr,
    BLOCK_L: tl.constexpr,
    DOSE_PARTS: tl.constexpr = DOSE_PARTS,
    PLANNED: tl.constexpr = PLANNED,
    STEERED: tl.constexpr = STEERED,
    SHORTENED: tl.constexpr = SHORTENED,
    NONFINITE: tl.constexpr = NONFINITE,
    LAST: tl.constexpr = LAST,
    N_COUNTS: tl.constexpr = N_COUNTS,
):
    """Program: a token, all its layers at once. Atomics, as tokens of a request share its row."""
    i_t = tl.program_id(0).to(tl.int64)
    o_l, o_part = tl.arange(0, BLOCK_L), tl.arange(0, DOSE_PARTS)
    m_l = o_l < L
    o_entry = (i_t * DOSE_PARTS + o_part[None, :]) * 2
    p_entry = p_dose + o_l[:, None].to(tl.int64) * dose_stride + o_entry
    b_change2 = tl.load(p_entry, mask=m_l[:, None], other=0.0)
    b_x2 = tl.load(p_entry + 1, mask=m_l[:, None], other=0.0)
    tl.store(p_entry, -1.0, mask=m_l[:, None])
    tl.store(p_entry + 1, -1.0, mask=m_l[:, None])

    row = tl.load(p_token_row + i_t).to(tl.int64)
    if row >= 0:
        m_written = (b_change2 < 0) == 0  # NaN is written
        n_missed = tl.sum(((m_written == 0) & m_l[:, None] & (o_part[None, :] == 0)).to(tl.int32))
        position = tl.load(p_token_fresh + i_t)
        p_row = p_table + row * TABLE_STRIDE
        if position >= 0:
            tl.atomic_add(p_row + PLANNED, 1, sem="relaxed")
            tl.atomic_max(p_row + LAST, position, sem="relaxed")
        b_change = tl.sum(tl.where(m_written, b_change2, 0.0), axis=1)
        b_x = tl.sum(tl.where(m_written, tl.abs(b_x2), 0.0), axis=1)
        b_dose = tl.where(b_change == 0, 0.0, tl.sqrt_rn(tl.div_rn(b_change, b_x)))
        n_nonfinite = tl.sum(((b_dose < float("inf")) == 0).to(tl.int32))  # NaN is not <
        if n_missed > 0:
            tl.atomic_add(p_missed, 1, sem="relaxed")
        elif n_nonfinite > 0:
            tl.atomic_add(p_row + NONFINITE, 1, sem="relaxed")
        elif position >= 0:
            tl.atomic_add(p_row + STEERED, 1, sem="relaxed")
            n_shortened = tl.sum((m_written & (b_x2 < 0)).to(tl.int32))
            if n_shortened > 0:
                tl.atomic_add(p_row + SHORTENED, 1, sem="relaxed")
            p_sum = p_values + row * TABLE_STRIDE + N_COUNTS + o_l
            tl.atomic_add(p_sum, b_dose, mask=m_l, sem="relaxed")
            # What is not negative is ordered as its bits.
            b_bits = tl.abs(b_dose).to(tl.int32, bitcast=True)
            tl.atomic_max(p_row + N_COUNTS + L + o_l, b_bits, mask=m_l, sem="relaxed")


def tally_steps_triton(
    token_row: Tensor, token_fresh: Tensor, dose: Tensor, table: Tensor, missed: Tensor
) -> None:
    """The launcher: arguments as those of :func:`tally_steps_torch`."""
    n_tokens, n_layers = token_row.shape[0], dose.shape[0]
    if n_tokens == 0:
        return
    _tally_kernel[(n_tokens,)](
        p_token_row=token_row,
        p_token_fresh=token_fresh,
        p_dose=dose,
        p_table=table,
        p_values=table.view(torch.float32),
        p_missed=missed,
        dose_stride=dose.stride(0),
        TABLE_STRIDE=table.stride(0),
        L=n_layers,
        BLOCK_L=next_power_of_2(n_layers),
        num_warps=1,
    )
