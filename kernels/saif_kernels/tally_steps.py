"""Counts and doses of each request, added up on the device after every step."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._steer_dose import DOSE_PARTS
from saif_kernels._triton import jit, next_power_of_2, tl
from saif_kernels.request_rows import copy_from_host


class Tally:
    """N request rows of counts and doses, and the tables in which a step's ops leave them.

    Allocated once and filled in place, so that a CUDA graph may keep the pointers. All columns of a
    row are views of one table, so that a row is cleared, or copied to the host, in one copy. A step
    goes ::

        prepare_steps_(..., token_fresh=tally.token_fresh[:T], counts=tally.counts)
        steer_(..., dose=tally.dose[l])  # in every hooked layer l
        tally_steps_(token_row[:T], tally)  # before the next prepare_steps_

    Args:
        table: [N, 5 + 2 * L] int32, contiguous; fp32 columns hold the bits of their values.
        token_fresh: [max_tokens] int32.
        dose: [L, max_tokens, DOSE_PARTS, 2] fp32, contiguous, -1.
        missed: [1] int32.

    Attributes:
        table, token_fresh, dose: as given.
        missed: [1] int32, tokens that were to be steered and at some layer were not; never reset.
        counts: [N, 5] int32, by column: tokens PLANNED; tokens STEERED; those of them whose change
            was SHORTENED; tokens not steered because their change or stream is NONFINITE;
            and the HIGHEST_POSITION counted, -1 at first.
        dose_sum: [N, L] fp32, sum of the relative doses |change| / |x| of the steered tokens.
        dose_max: [N, L] fp32, the largest of them.
    """

    # The columns of ``counts``. In the table, L sums and L maxima of doses follow.
    PLANNED, STEERED, SHORTENED, NONFINITE, HIGHEST_POSITION, N_COUNTS = range(6)

    def __init__(self, table: Tensor, token_fresh: Tensor, dose: Tensor, missed: Tensor) -> None:
        self.table, self.token_fresh, self.dose, self.missed = table, token_fresh, dose, missed
        self.counts, self.dose_sum, self.dose_max = self.columns(table)
        self._cleared = torch.zeros(table.shape[1], dtype=torch.int32)
        self._cleared[self.HIGHEST_POSITION] = -1

    @classmethod
    def allocate(
        cls, n_layers: int, max_tokens: int, max_requests: int, device: torch.device | str
    ) -> Tally:
        """Return cleared rows, with no dose written.

        Args:
            n_layers: hooked layers.
            max_tokens: tokens of a step, at most.
            max_requests: request rows.
            device: where the layers run.

        Examples:
            >>> tally = Tally.allocate(2, max_tokens=8192, max_requests=256, device="cuda")
        """
        shape = (max_requests, cls.N_COUNTS + 2 * n_layers)
        tally = cls(
            table=torch.zeros(shape, dtype=torch.int32, device=device),
            token_fresh=torch.full((max_tokens,), -1, dtype=torch.int32, device=device),
            dose=torch.full((n_layers, max_tokens, DOSE_PARTS, 2), -1.0, device=device),
            missed=torch.zeros(1, dtype=torch.int32, device=device),
        )
        tally.counts[:, cls.HIGHEST_POSITION] = -1
        return tally

    def tensors(self) -> dict[str, Tensor]:
        """Return the tables by name; the columns are views of them."""
        names = ("table", "token_fresh", "dose", "missed")
        return {name: getattr(self, name) for name in names}

    def clear_row(self, row: int) -> None:
        """Make ``row`` ready for another request, in one copy for which the host does not wait."""
        copy_from_host(self.table[row], self._cleared)

    @classmethod
    def columns(cls, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return counts [N, 5] int32, sums and maxima of doses [N, L] fp32: views of a table."""
        dose_sum, dose_max = table[:, cls.N_COUNTS :].view(torch.float32).tensor_split(2, dim=1)
        return table[:, : cls.N_COUNTS], dose_sum, dose_max


def tally_steps_(token_row: Tensor, tally: Tally) -> None:
    """Count what a step has steered; run once after it, before the next ``prepare_steps_``.

    Semantics: a token of row >= 0 is *planned*. It is *missed* if at some layer part 0 of its dose
    was not written, else *nonfinite* if some dose is inf, else *steered*. A steered token is
    *shortened* if some sum of x**2 is negative. A token is *fresh* if ``token_fresh`` is >= 0, so
    that a position is counted once although it may come again, after a preemption or a rejected
    draft. With the sums over the parts that were written ::

        dose_l  = sqrt(sum of change**2 / sum of |x**2|) at layer l;  0 where the change is 0
        missed += 1                                                     per missed token
        counts[row, NONFINITE] += 1                                     per nonfinite token
        counts[row, PLANNED] += 1                                       per fresh token
        counts[row, HIGHEST_POSITION] max= token_fresh                  per fresh token
        counts[row, STEERED] += 1;  counts[row, SHORTENED] += shortened    per fresh, steered token
        dose_sum[row, l] += dose_l;  dose_max[row, l] max= dose_l       per fresh, steered token

    A change of an all-zero x so counts as nonfinite; under a ``max_dose`` there is none. Then every
    dose of the T tokens is reset to -1.

    No value leaves the device. On a GPU the order in which a step is added to dose_sum is not
    fixed.

    Args:
        token_row: [T] int32, as the step's ``prepare_steps_`` left it; T counts padding, too.
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


def tally_steps_torch_(
    token_row: Tensor, token_fresh: Tensor, dose: Tensor, table: Tensor, missed: Tensor
) -> None:
    """Specify :func:`tally_steps_`, over the tally's tables; also what runs on CPUs."""
    n_tokens = token_row.shape[0]
    counts, dose_sum, dose_max = Tally.columns(table)
    of_step, position = dose[:, :n_tokens], token_fresh[:n_tokens]
    part_written = ~(of_step[..., 0] < 0)  # [L, T, DOSE_PARTS]; NaN is written
    change, x = torch.where(part_written[..., None], of_step.abs(), 0.0).sum(2).unbind(-1)  # [L, T]
    relative = torch.where(change == 0, 0.0, (change / x).sqrt())
    finite = relative.isfinite().all(0)
    shortened = (part_written & (of_step[..., 1] < 0)).any(2).any(0)
    planned = token_row >= 0
    written = part_written[:, :, 0].all(0)
    missed += (planned & ~written).sum()
    # A token that is not counted adds 0: a planned one to its own row, another one to row 0.
    row = token_row.clamp(min=0).long()
    fresh = planned & (position >= 0)
    counted = fresh & written & finite
    nonfinite = planned & written & ~finite
    columns_of_token = torch.stack([fresh, counted, counted & shortened, nonfinite], 1)
    counts[:, : Tally.HIGHEST_POSITION].index_add_(0, row, columns_of_token.int())
    highest_position = counts[:, Tally.HIGHEST_POSITION]
    highest_position.scatter_reduce_(0, row, torch.where(fresh, position, -1), "amax")
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
    PLANNED: tl.constexpr = Tally.PLANNED,
    STEERED: tl.constexpr = Tally.STEERED,
    SHORTENED: tl.constexpr = Tally.SHORTENED,
    NONFINITE: tl.constexpr = Tally.NONFINITE,
    HIGHEST_POSITION: tl.constexpr = Tally.HIGHEST_POSITION,
    N_COUNTS: tl.constexpr = Tally.N_COUNTS,
):
    """Grid (token,). Count a token at all layers at once.

    By atomics, because the tokens of a request share its row.
    """
    i_t = tl.program_id(0).to(tl.int64)
    o_l, o_part = tl.arange(0, BLOCK_L), tl.arange(0, DOSE_PARTS)
    m_l = o_l < L
    o_entry = (i_t * DOSE_PARTS + o_part[None, :]) * 2
    p_entry = p_dose + o_l[:, None].to(tl.int64) * dose_stride + o_entry
    b_change2 = tl.load(p_entry, mask=m_l[:, None], other=0.0)
    b_x2 = tl.load(p_entry + 1, mask=m_l[:, None], other=0.0)
    tl.store(p_entry, -1.0, mask=m_l[:, None])
    tl.store(p_entry + 1, -1.0, mask=m_l[:, None])

    request_row = tl.load(p_token_row + i_t).to(tl.int64)
    if request_row >= 0:
        m_written = (b_change2 < 0) == 0  # NaN is written
        n_missed = tl.sum(((m_written == 0) & m_l[:, None] & (o_part[None, :] == 0)).to(tl.int32))
        position = tl.load(p_token_fresh + i_t)
        p_row = p_table + request_row * TABLE_STRIDE
        if position >= 0:
            tl.atomic_add(p_row + PLANNED, 1, sem="relaxed")
            tl.atomic_max(p_row + HIGHEST_POSITION, position, sem="relaxed")
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
            p_sum = p_values + request_row * TABLE_STRIDE + N_COUNTS + o_l
            tl.atomic_add(p_sum, b_dose, mask=m_l, sem="relaxed")
            # Floats that are not negative sort as their bits do: an integer maximum is exact.
            b_bits = tl.abs(b_dose).to(tl.int32, bitcast=True)
            tl.atomic_max(p_row + N_COUNTS + L + o_l, b_bits, mask=m_l, sem="relaxed")


def tally_steps_triton_(
    token_row: Tensor, token_fresh: Tensor, dose: Tensor, table: Tensor, missed: Tensor
) -> None:
    """Launch the kernel; arguments as of :func:`tally_steps_torch_`."""
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
