"""The device tables of one hooked layer: a pool of latent rows, and for each set a slot into it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_LATENTS = 64  # live latents of one set at one layer: a token's scratch on a GPU is of that size


class LatentEdits(NamedTuple):
    """One latent set at one layer, compiled: k live latents, all constants in ``vector``.

    Semantics: ``D_i = max(lo_i, p_i + q_i * a_i) * (1 if not gated_i or a_i > 0 else 0)`` with
    ``a_i = pre_i if pre_i > threshold_i else 0`` and ``pre_i = <x, W_enc_i> + b_enc_i``; the set
    adds ``vector + sum_i D_i * W_dec_i`` to the residual stream x.

    All tensors are on the CPU; values are fp32 in the model's residual units.
    """

    W_enc: Tensor  # [k, d_model]
    b_enc: Tensor  # [k]
    threshold: Tensor  # [k]; 0 is ReLU, -inf a linear probe
    W_dec: Tensor  # [k, d_model]
    p: Tensor  # [k]
    q: Tensor  # [k]
    lo: Tensor  # [k]
    gated: Tensor  # [k] bool
    vector: Tensor  # [d_model]

    @classmethod
    def empty(cls, d_model: int) -> LatentEdits:
        """No live latent and a zero vector: a set that does nothing at this layer."""
        scalars = torch.zeros(0)
        rows = torch.zeros(0, d_model)
        return cls(
            W_enc=rows,
            b_enc=scalars,
            threshold=scalars,
            W_dec=rows,
            p=scalars,
            q=scalars,
            lo=scalars,
            gated=torch.zeros(0, dtype=torch.bool),
            vector=torch.zeros(d_model),
        )


class SteeringBank(NamedTuple):
    """R pool rows and S set slots of one hooked layer, allocated once and filled in place.

    Pointers never change, so a captured CUDA graph keeps reading what is loaded later. A slot that
    was never written, or was cleared, has no latents and a zero vector: it steers nothing.
    """

    W_enc: Tensor  # [R, d_model] model dtype
    W_dec: Tensor  # [R, d_model] model dtype
    b_enc: Tensor  # [R] fp32
    threshold: Tensor  # [R] fp32
    p: Tensor  # [R] fp32
    q: Tensor  # [R] fp32
    lo: Tensor  # [R] fp32
    gated: Tensor  # [R] bool
    offset: Tensor  # [S] int32, first pool row of the set
    n_latents: Tensor  # [S] int32, its number of live latents
    vector: Tensor  # [S, d_model] model dtype
    W_dec_norm: Tensor  # [R] fp32, of the rows as they are stored
    vector_norm: Tensor  # [S] fp32

    @classmethod
    def allocate(
        cls,
        d_model: int,
        max_sets: int,
        max_latents: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> SteeringBank:
        """Zeroed tables for ``max_sets`` sets that share a pool of ``max_latents`` live latents."""
        # At least one row each, so that a gather with index 0 is always legal.
        n_rows, n_sets = max(max_latents, 1), max(max_sets, 1)

        def scalars() -> Tensor:
            return torch.zeros(n_rows, dtype=torch.float32, device=device)

        return cls(
            W_enc=torch.zeros(n_rows, d_model, dtype=dtype, device=device),
            W_dec=torch.zeros(n_rows, d_model, dtype=dtype, device=device),
            b_enc=scalars(),
            threshold=scalars(),
            p=scalars(),
            q=scalars(),
            lo=scalars(),
            gated=torch.zeros(n_rows, dtype=torch.bool, device=device),
            offset=torch.zeros(n_sets, dtype=torch.int32, device=device),
            n_latents=torch.zeros(n_sets, dtype=torch.int32, device=device),
            vector=torch.zeros(n_sets, d_model, dtype=dtype, device=device),
            W_dec_norm=scalars(),
            vector_norm=torch.zeros(n_sets, dtype=torch.float32, device=device),
        )

    def write(self, slot: int, offset: int, edits: LatentEdits) -> None:
        """Put ``edits`` into ``slot``, its latents into pool rows ``offset .. offset + k - 1``.

        The caller owns the free lists; rows in use by another slot must not be passed.
        """
        k = edits.W_enc.shape[0]
        pool = slice(offset, offset + k)
        assert k <= MAX_LATENTS
        assert offset + k <= self.W_enc.shape[0] and slot < self.vector.shape[0]
        for name in ("W_enc", "W_dec", "b_enc", "threshold", "p", "q", "lo", "gated"):
            getattr(self, name)[pool].copy_(getattr(edits, name))
        self.vector[slot].copy_(edits.vector)
        self.W_dec_norm[pool] = self.W_dec[pool].float().norm(dim=1)
        self.vector_norm[slot] = self.vector[slot].float().norm()
        self.offset[slot] = offset
        self.n_latents[slot] = k

    def clear(self, slot: int) -> None:
        """Make ``slot`` steer nothing; its pool rows may be reused afterwards."""
        self.n_latents[slot] = 0
        self.vector[slot].zero_()
        self.vector_norm[slot] = 0
