"""Inputs of tally_steps_: what a step of planned tokens may leave for it."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels import DOSE_PARTS, Tally


def random_tally(
    n_tokens: int = 40,
    n_layers: int = 3,
    n_requests: int = 5,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
) -> tuple[Tensor, Tally]:
    """``token_row`` of a step, and a tally in use: some tokens not planned, not fresh, or missed by
    a layer; doses of one part and of all, some of them 0, shortened or nonfinite; rows that have
    counted before.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).int()

    tally = Tally.allocate(n_layers, n_tokens + 3, n_requests, "cpu")
    tally.counts.copy_(random(0, 50, *tally.counts.shape))
    tally.dose_sum.copy_(torch.rand(n_requests, n_layers, generator=generator))
    tally.dose_max.copy_(torch.rand(n_requests, n_layers, generator=generator))
    tally.missed.fill_(3)
    token_row = random(-1, n_requests, n_tokens)
    tally.token_fresh[:n_tokens] = torch.where(token_row >= 0, random(-1, 99, n_tokens), -1)
    n_parts = torch.where(random(0, 2, n_layers) == 0, 1, DOSE_PARTS)
    sums = torch.rand(n_layers, n_tokens, DOSE_PARTS, 2, generator=generator)
    sums[:, random(0, 8, n_tokens) == 0, :, 0] = 0.0
    sums[random(0, 8, n_layers, n_tokens) == 0] *= torch.tensor([1.0, -1.0])
    sums[random(0, 8, n_layers, n_tokens) == 0] = torch.inf
    written = (token_row >= 0) & (random(0, 15, n_layers, n_tokens) > 0)
    written = written[:, :, None] & (torch.arange(DOSE_PARTS) < n_parts[:, None, None])
    tally.dose[:, :n_tokens] = torch.where(written[..., None], sums, -1.0)
    tables = (tally.table, tally.token_fresh, tally.dose, tally.missed)
    return token_row.to(device), Tally(*(table.to(device) for table in tables))


def tally_arguments(tally: Tally) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``torch.ops.saif.tally_steps_`` takes of a tally."""
    return tally.token_fresh, tally.dose, tally.table, tally.missed
