"""Inputs of the GPU benchmarks of ``steer_``, its baselines, and the check before any timing.

Everything runs on the CPU, too, where ``tests/kernels/test_gpu_bench.py`` tries it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from traffic import set_of

from saif_kernels import LatentEdits, RequestRows, SteeringBank, steer_
from saif_kernels._steer_cpu import steer_cpu_

CLAMP = 2.0
EPSILON = 1e-6  # the norm's
# bf16 rounds the result once (2**-8); fp32 only sums in another order.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 1e-4}


class SteerInputs(NamedTuple):
    """The arguments of one call of ``steer_``; all sets have as many tokens and as many latents."""

    hidden: Tensor
    residual: Tensor
    bank: SteeringBank
    rows: RequestRows
    token_row: Tensor
    token_scale: Tensor

    def reference(self) -> Tensor:
        """Return what ``hidden`` becomes in torch: the specification would take too long."""
        hidden, rows = self.hidden.clone(), self.rows
        steer_cpu_(hidden, self.residual, *self.bank, rows.set_slot, rows.strength, *self[4:])
        return hidden


def clamps(n_latents: int, d_model: int, generator: torch.Generator) -> LatentEdits:
    """Return ReLU latents clamped to ``CLAMP``: this edit has no jump at which rounding decides."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    zeros = torch.zeros(n_latents)
    return LatentEdits(
        W_enc=normal(n_latents, d_model) / d_model**0.5,
        b_enc=normal(n_latents) / 4,
        threshold=zeros,
        W_dec=normal(n_latents, d_model) / d_model**0.5,
        p=zeros + CLAMP,
        q=zeros - 1.0,
        lo=zeros - math.inf,
        gated=zeros.bool(),
        vector=normal(d_model) / 4,
    )


class Sets(NamedTuple):
    """Sets in their bank, and a request row for each: row i asks for set i."""

    bank: SteeringBank
    rows: RequestRows


def in_a_bank(sets: list[LatentEdits], dtype: torch.dtype, device: str) -> Sets:
    """Put sets of equally many latents into a bank."""
    n_latents, d_model = sets[0].W_enc.shape
    bank = SteeringBank.allocate(d_model, len(sets), len(sets) * n_latents, dtype, device)
    rows = RequestRows.allocate(len(sets), 1, device)
    for slot, edits in enumerate(sets):
        bank.write_set(slot, slot * n_latents, edits)
        rows.write_row(slot, [(slot, 1.0)], prompt_len=1)
    return Sets(bank, rows)


def sets_of_clamps(
    n_sets: int,
    n_latents: int,
    d_model: int,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> Sets:
    """Return ``n_sets`` random sets; they differ by a rotation of their rows, quick to make."""
    edits = clamps(n_latents, d_model, torch.Generator().manual_seed(0))
    rotated = [
        edits._replace(
            W_enc=edits.W_enc.roll(slot, 1),
            W_dec=edits.W_dec.roll(slot, 1),
            vector=edits.vector.roll(slot),
        )
        for slot in range(n_sets)
    ]
    return in_a_bank(rotated, dtype, device)


def steer_inputs(n_tokens: int, sets: Sets, *, idle: bool = False) -> SteerInputs:
    """Return a call for ``n_tokens``, a set's tokens next to one another; idle: all of row -1."""
    bank, rows = sets
    n_sets, d_model = bank.vector.shape
    dtype, device = bank.vector.dtype, bank.vector.device
    of_token = [-1 if idle else set_of(t, n_tokens, n_sets) for t in range(n_tokens)]
    return SteerInputs(
        hidden=torch.randn(n_tokens, d_model, dtype=dtype, device=device),
        residual=torch.randn(n_tokens, d_model, dtype=dtype, device=device),
        bank=bank,
        rows=rows,
        token_row=torch.tensor(of_token, dtype=torch.int32, device=device),
        token_scale=torch.ones(n_tokens, device=device),
    )


def copies(inputs: SteerInputs, n: int) -> list[SteerInputs]:
    """Return arguments of ``n`` calls that share no byte but the requests' rows."""
    return [
        inputs._replace(
            hidden=inputs.hidden.clone(),
            residual=inputs.residual.clone(),
            bank=SteeringBank(*(table.clone() for table in inputs.bank)),
        )
        for _ in range(n)
    ]


def unfused(inputs: SteerInputs, n_latents: int) -> None:
    """Make the same change in torch's own ops as one would by hand: batched over the sets."""
    hidden, residual, bank, _, token_row, token_scale = inputs
    n_sets = bank.vector.shape[0]
    change = bank.vector[token_row]
    if n_latents:
        x = (hidden + residual).view(n_sets, -1, hidden.shape[1])
        W_enc, W_dec = (w.view(n_sets, n_latents, -1) for w in (bank.W_enc, bank.W_dec))
        b_enc, threshold, p, q, lo = (scalars.view(n_sets, 1, n_latents) for scalars in bank[2:7])
        pre = (x @ W_enc.mT).float() + b_enc
        edit = torch.maximum(lo, p + q * torch.where(pre > threshold, pre, 0.0))
        change = change + (edit.to(x.dtype) @ W_dec).view_as(hidden)
    hidden += (token_scale[:, None] * change).to(hidden.dtype)


class WholeSae:
    """A hook around a whole SAE as SAELens runs it: encode, decode, mask, decode, add the error."""

    def __init__(
        self, d_model: int, d_sae: int, n_latents: int, dtype: torch.dtype, device: str
    ) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device)

        self.W_enc = normal(d_model, d_sae).div_(d_model**0.5)
        self.W_dec = normal(d_sae, d_model).div_(d_model**0.5)
        self.b_enc = normal(d_sae)
        self.chosen = torch.arange(n_latents, device=device) * (d_sae // n_latents)

    def __call__(self, x: Tensor) -> Tensor:
        a = torch.addmm(self.b_enc, x, self.W_enc).relu_()
        error = x - a @ self.W_dec
        a[:, self.chosen] = CLAMP
        return a @ self.W_dec + error

    def chosen_set(self) -> Sets:
        """Return the same clamps as one latent set."""
        n_latents, d_model = len(self.chosen), self.W_dec.shape[1]
        edits = clamps(n_latents, d_model, torch.Generator())._replace(
            W_enc=self.W_enc[:, self.chosen].T.cpu(),
            W_dec=self.W_dec[self.chosen].cpu(),
            b_enc=self.b_enc[self.chosen].cpu(),
            vector=torch.zeros(d_model),
        )
        return in_a_bank([edits], self.W_enc.dtype, str(self.W_enc.device))


def add_rms_norm(hidden: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Add the residual and normalise, as the next layer begins; for ``torch.compile``."""
    x = (hidden + residual).float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)).to(hidden.dtype) * weight


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error over the largest value; NaN where either has one."""
    error = (actual.double() - expected.double()).abs().max()
    return float(error / expected.double().abs().max())


def gate(inputs: SteerInputs) -> None:
    """Raise unless ``steer_`` on these inputs equals the reference: nothing wrong gets timed."""
    actual = inputs.hidden.clone()
    steer_(actual, *inputs[1:])
    error = relative_error(actual, inputs.reference())
    if not error <= TOLERANCE[actual.dtype]:
        raise AssertionError(f"steer_: relative error {error:.2g} at {list(actual.shape)}")
