"""The steering op against the same mathematics unfused: full SAE encode, mask, decode, add."""

from __future__ import annotations

import math

import pytest
import torch

from saif_kernels import LatentEdits, RequestRows, SteeringBank, steer_

D_MODEL, D_SAE, N_LIVE = 1024, 16384, 16


class Unfused:
    """A hook around an SAE: encode all latents, clamp the chosen, decode the change."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.W_enc = torch.randn(D_MODEL, D_SAE, generator=generator) / D_MODEL**0.5
        self.W_dec = torch.randn(D_SAE, D_MODEL, generator=generator) / D_MODEL**0.5
        self.chosen = torch.arange(0, D_SAE, D_SAE // N_LIVE)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        a = torch.relu(hidden @ self.W_enc)
        change = torch.zeros_like(a)
        change[:, self.chosen] = 2.0 - a[:, self.chosen]
        return hidden + change @ self.W_dec

    def edits(self) -> LatentEdits:
        """Return the same clamp as a latent set's live rows."""
        scalars = torch.zeros(N_LIVE)
        return LatentEdits(
            W_enc=self.W_enc[:, self.chosen].T.contiguous(),
            b_enc=scalars,
            threshold=scalars,
            W_dec=self.W_dec[self.chosen],
            p=scalars + 2.0,
            q=scalars - 1.0,
            lo=scalars - math.inf,
            gated=torch.zeros(N_LIVE, dtype=torch.bool),
            vector=torch.zeros(D_MODEL),
        )


@pytest.fixture(scope="module")
def unfused() -> Unfused:
    return Unfused()


def prepared(unfused: Unfused, n_tokens: int, n_sets: int) -> tuple[object, ...]:
    bank = SteeringBank.allocate(D_MODEL, n_sets, n_sets * N_LIVE, torch.float32, "cpu")
    rows = RequestRows.allocate(n_sets, 1, "cpu")
    for slot in range(n_sets):
        bank.write_set(slot, slot * N_LIVE, unfused.edits())
        rows.write_row(slot, [(slot, 1.0)], prompt_len=1)
    token_row = torch.arange(n_tokens, dtype=torch.int32) % n_sets
    return bank, rows, token_row, torch.ones(n_tokens)


@pytest.mark.parametrize("n_tokens", [1, 32, 512])
def test_live_clamp_against_full_encode(compare, unfused: Unfused, n_tokens: int) -> None:
    bank, rows, token_row, token_scale = prepared(unfused, n_tokens, 1)
    x = torch.randn(n_tokens, D_MODEL)
    steered = x.clone()
    steer_(steered, None, bank, rows, token_row, token_scale)
    torch.testing.assert_close(steered, unfused(x), rtol=1e-4, atol=1e-4)
    compare(
        lambda: steer_(steered, None, bank, rows, token_row, token_scale),
        lambda: unfused(x),
        baseline_name=f"encode-mask-decode, d_sae {D_SAE}",
        rounds=20,
    )


@pytest.mark.parametrize("n_sets", [8, 256])
def test_many_sets_against_one(compare, unfused: Unfused, n_sets: int) -> None:
    n_tokens = 256
    many, one = prepared(unfused, n_tokens, n_sets), prepared(unfused, n_tokens, 1)
    x = torch.randn(n_tokens, D_MODEL)
    first, second = x.clone(), x.clone()
    steer_(first, None, *many)
    steer_(second, None, *one)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    compare(
        lambda: steer_(first, None, *many),
        lambda: steer_(second, None, *one),
        baseline_name="one set for all tokens",
    )


def test_idle_against_a_copy(compare, unfused: Unfused) -> None:
    n_tokens = 512
    bank, rows, _, token_scale = prepared(unfused, n_tokens, 1)
    idle = torch.full((n_tokens,), -1, dtype=torch.int32)
    x = torch.randn(n_tokens, D_MODEL)
    compare(
        lambda: steer_(x, None, bank, rows, idle, token_scale),
        lambda: x.clone(),
        baseline_name="one copy of the residual stream",
    )
