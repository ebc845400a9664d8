"""The tables of a bank: their fields, shapes and dtypes, and what a slot holds."""

from __future__ import annotations

import pytest
import torch
from steering_cases import random_edits

from saif_kernels import LatentEdits, SteeringBank
from saif_kernels.bank import LATENT_FIELDS

D_MODEL = 4


@pytest.fixture
def edits() -> LatentEdits:
    return random_edits(D_MODEL, ["clamp", "add@gated"], torch.Generator().manual_seed(0))


def test_a_latents_fields_come_first_in_edits_and_bank_with_shape_and_dtype() -> None:
    bank = SteeringBank.allocate(D_MODEL, 3, 5, torch.bfloat16, "cpu")
    for table, n, dtype in (
        (LatentEdits.empty(D_MODEL), 0, torch.float32),
        (bank, 5, bank.W_dec.dtype),
    ):
        assert table._fields[:8] == LATENT_FIELDS
        assert {tuple(rows.shape) for rows in table[:2]} == {(n, D_MODEL)}
        assert {tuple(numbers.shape) for numbers in table[2:8]} == {(n,)}
        assert [t.dtype for t in table[:8]] == [dtype] * 2 + [torch.float32] * 5 + [torch.bool]


def test_a_slot_holds_what_was_written_until_it_is_cleared(edits: LatentEdits) -> None:
    bank = SteeringBank.allocate(D_MODEL, 2, 5, torch.float32, "cpu")
    bank.write_set(1, 3, edits)
    assert (bank.offset.tolist(), bank.n_latents.tolist()) == ([0, 3], [0, 2])
    for name in LATENT_FIELDS:
        assert torch.equal(getattr(bank, name)[3:], getattr(edits, name)), name
        assert not getattr(bank, name)[:3].any(), name
    torch.testing.assert_close(bank.vector, torch.stack([torch.zeros(D_MODEL), edits.vector]))
    bank.clear_slot(1)
    assert not bank.n_latents.any() and not bank.vector.any() and not bank.vector_norm.any()
