"""The tables of a bank: their fields, shapes and dtypes, and what a slot holds."""

from __future__ import annotations

import pickle

import pytest
import torch
from steering_cases import random_edits

from saif_kernels import LatentEdits, SteeringBank
from saif_kernels.bank import LatentTable

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
        assert table._fields[:8] == LatentTable._fields
        assert {tuple(rows.shape) for rows in table[:2]} == {(n, D_MODEL)}
        assert {tuple(numbers.shape) for numbers in table[2:8]} == {(n,)}
        assert [t.dtype for t in table[:8]] == [dtype] * 2 + [torch.float32] * 5 + [torch.bool]


def test_a_slot_holds_what_was_written_until_it_is_cleared(edits: LatentEdits) -> None:
    bank = SteeringBank.allocate(D_MODEL, 2, 5, torch.float32, "cpu")
    bank.write_set(1, 3, edits)
    assert (bank.offset.tolist(), bank.n_latents.tolist()) == ([0, 3], [0, 2])
    for name in LatentTable._fields:
        assert torch.equal(getattr(bank, name)[3:], getattr(edits, name)), name
        assert not getattr(bank, name)[:3].any(), name
    torch.testing.assert_close(bank.vector, torch.stack([torch.zeros(D_MODEL), edits.vector]))
    bank.clear_slot(1)
    assert not bank.n_latents.any() and not bank.vector.any() and not bank.vector_norm.any()


def test_fields_are_given_once_each(edits: LatentEdits) -> None:
    named = edits._asdict()
    assert list(named) == list(LatentEdits._fields)
    rest = {name: named[name] for name in LatentEdits._fields[3:]}
    assert all(a is b for a, b in zip(LatentEdits(*edits[:3], **rest), edits, strict=True))
    for bad in ({**named, "hi": edits.p}, {name: named[name] for name in named if name != "lo"}):
        with pytest.raises(TypeError, match=r"LatentEdits: expected the fields W_enc, .*, vector"):
            LatentEdits(**bad)
    with pytest.raises(TypeError, match="got 10 of them"):
        LatentEdits(*edits, edits.p)


def test_edits_travel_to_other_processes(edits: LatentEdits) -> None:
    arrived = pickle.loads(pickle.dumps(edits))
    assert type(arrived) is LatentEdits
    assert all(map(torch.equal, arrived, edits))
