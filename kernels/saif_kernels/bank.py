"""The device tables of one hooked layer: a pool of latents, and a slot per set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_LATENTS = 64  # live latents of one set at one layer; a token's scratch on a GPU has that size


class LatentEdits(NamedTuple):
    """One latent set at one layer: k live latents, and the sum of its constants in ``vector``.

    Semantics: ``D_i = max(lo_i, p_i + q_i * a_i) * (1 if not gated_i or a_i > 0 else 0)`` with
    ``a_i = pre_i if pre_i > threshold_i else 0`` and ``pre_i = <x, W_enc_i> + b_enc_i``; the set
    adds ``vector + sum_i D_i * W_dec_i`` to the residual stream x.

    All tensors are on the CPU; values are fp32 in the model's residual units.
    """

    W_enc: Tensor  # [k, d_model]
    W_dec: Tensor  # [k, d_model]
    b_enc: Tensor  # [k]
    threshold: Tensor  # [k]; 0 is ReLU, -inf a linear probe
    p: Tensor  # [k]
    q: Tensor  # [k]
    lo: Tensor  # [k]
    gated: Tensor  # [k] bool
    vector: Tensor  # [d_model]

    @classmethod
    def empty(cls, d_model: int) -> LatentEdits:
        """Return a set that does nothing at this layer: no live latent, and a zero vector."""
        tables = _latent_tables(0, d_model, torch.float32, "cpu")
        return cls(**tables, vector=torch.zeros(d_model))


# The fields with an entry per latent, in LatentEdits and under the same names in SteeringBank.
LATENT_FIELDS = tuple(name for name in LatentEdits._fields if name != "vector")
_ROWS = ("W_enc", "W_dec")  # of these, the fields with d_model channels, in the model's dtype


def _latent_tables(
    n: int, d_model: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Return a zeroed table of ``n`` latents for each of :data:`LATENT_FIELDS`."""
    return {
        name: torch.zeros(n, d_model, dtype=dtype, device=device)
        if name in _ROWS
        else torch.zeros(n, dtype=torch.bool if name == "gated" else torch.float32, device=device)
        for name in LATENT_FIELDS
    }


class SteeringBank(NamedTuple):
    """A pool of P latents and S set slots of one hooked layer, allocated once and filled in place.

    Pointers never change, so a captured CUDA graph reads what is loaded later. A slot that was
    never written, or was cleared, has no latents and a zero vector: it steers nothing.
    """

    W_enc: Tensor  # [P, d_model] model dtype
    W_dec: Tensor  # [P, d_model] model dtype
    b_enc: Tensor  # [P] fp32
    threshold: Tensor  # [P] fp32
    p: Tensor  # [P] fp32
    q: Tensor  # [P] fp32
    lo: Tensor  # [P] fp32
    gated: Tensor  # [P] bool
    offset: Tensor  # [S] int32, pool index of the set's first latent
    n_latents: Tensor  # [S] int32, live latents of the set
    vector: Tensor  # [S, d_model] model dtype
    W_dec_norm: Tensor  # [P] fp32, of the rows as they are stored
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
        """Return zeroed tables of one layer.

        Args:
            d_model: channels of the residual stream.
            max_sets: slots.
            max_latents: live latents of all sets together.
            dtype: the model's.
            device: where the layer runs.

        Examples:
            >>> bank = SteeringBank.allocate(2304, 8, 512, torch.bfloat16, "cuda")
            >>> bank.write_set(slot=0, offset=0, edits=edits)
        """
        # At least one entry each, so that a gather with index 0 is always legal.
        n_pool, n_sets = max(max_latents, 1), max(max_sets, 1)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            **_latent_tables(n_pool, d_model, dtype, device),
            offset=zeros(n_sets, dtype=torch.int32),
            n_latents=zeros(n_sets, dtype=torch.int32),
            vector=zeros(n_sets, d_model, dtype=dtype),
            W_dec_norm=zeros(n_pool),
            vector_norm=zeros(n_sets),
        )

    def write_set(self, slot: int, offset: int, edits: LatentEdits) -> None:
        """Put ``edits`` into ``slot``, and its k latents into the pool from ``offset`` on.

        The caller keeps the free lists: no other slot may use these places of the pool.
        """
        k = edits.W_enc.shape[0]
        pool = slice(offset, offset + k)
        assert k <= MAX_LATENTS
        assert offset + k <= self.W_enc.shape[0] and slot < self.vector.shape[0]
        for name in LATENT_FIELDS:
            getattr(self, name)[pool].copy_(getattr(edits, name))
        self.vector[slot].copy_(edits.vector)
        self.W_dec_norm[pool] = self.W_dec[pool].float().norm(dim=1)
        self.vector_norm[slot] = self.vector[slot].float().norm()
        self.offset[slot] = offset
        self.n_latents[slot] = k

    def clear_slot(self, slot: int) -> None:
        """Make ``slot`` steer nothing; its places of the pool may be reused afterwards."""
        self.n_latents[slot] = 0
        self.vector[slot].zero_()
        self.vector_norm[slot] = 0
