"""Slots and pool rows: sharing by content, reuse after unloading, refusals that write nothing."""

from __future__ import annotations

import pytest
import torch

from saif_fast.edits import Edit
from saif_fast.latent_set import Latent, LatentSet, Site, SiteTensors
from saif_fast.tables import Capacity, SteeringTables

D_MODEL = 4


def make_set(k: int, layer: int = 1, value: float = 1.0) -> LatentSet:
    latents = [Latent(index=i, edit=Edit("clamp", value)) for i in range(k)]
    rows = torch.full((k, D_MODEL), value)
    tensors = SiteTensors(Site(layer, latents), rows, torch.zeros(k), torch.zeros(k), rows)
    return LatentSet((tensors,), D_MODEL, 2)


@pytest.fixture
def tables() -> SteeringTables:
    capacity = Capacity(max_sets=3, max_latents=8, max_requests=2, max_sets_per_request=2)
    return SteeringTables([1], D_MODEL, 2, capacity, torch.float32, "cpu")


def test_equal_content_shares_a_slot(tables: SteeringTables) -> None:
    assert tables.load(make_set(2)) == tables.load(make_set(2))
    assert tables.load(make_set(2, value=2.0)) != tables.slots[make_set(2).content_hash]


def test_rows_of_different_sets_do_not_overlap(tables: SteeringTables) -> None:
    slots = [tables.load(make_set(k, value=v)) for k, v in [(3, 1.0), (4, 2.0)]]
    bank = tables.banks[1]
    for slot, (k, value) in zip(slots, [(3, 1.0), (4, 2.0)], strict=True):
        begin = int(bank.offset[slot])
        assert int(bank.n_latents[slot]) == k
        assert (bank.W_enc[begin : begin + k] == value).all()
        assert (bank.p[begin : begin + k] == value).all()


def test_a_hole_left_by_unloading_is_used_again(tables: SteeringTables) -> None:
    sets = [make_set(k, value=float(i)) for i, k in enumerate((3, 2, 3), start=1)]
    for latent_set in sets:
        tables.load(latent_set)
    tables.unload(sets[1].content_hash)
    slot = tables.load(make_set(2, value=9.0))
    assert int(tables.banks[1].offset[slot]) == 3
    assert set(tables.slots) == {s.content_hash for s in (sets[0], sets[2], make_set(2, value=9.0))}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (make_set(9), "max_latents: 9 live latents do not fit in the 8 rows"),
        (make_set(1, layer=0), r"edits layer 0, but the hooked layers are \[1\]"),
        (LatentSet.from_vector(torch.ones(6), layer=1, num_layers=2), "hidden size 6"),
    ],
    ids=["too-many-latents", "layer", "model"],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tables: SteeringTables, bad: LatentSet, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tables.load(bad)
    assert not tables.slots
    assert all(table.abs().max() == 0 for table in tables.banks[1] if table.dtype != torch.bool)


def test_full_slots_are_refused(tables: SteeringTables) -> None:
    for value in (1.0, 2.0, 3.0):
        tables.load(make_set(1, value=value))
    with pytest.raises(ValueError, match="max_sets: all 3 slots are taken"):
        tables.load(make_set(1, value=4.0))


def test_another_ranks_layer_is_hooked_but_has_no_bank() -> None:
    capacity = Capacity(max_sets=1, max_latents=1, max_requests=1, max_sets_per_request=1)
    tables = SteeringTables([0, 1], D_MODEL, 2, capacity, torch.float32, "cpu", owned=[1])
    assert tables.load(make_set(1, layer=0)) == 0
    assert list(tables.banks) == [1]
    assert int(tables.banks[1].n_latents[0]) == 0


def test_more_live_latents_than_a_kernel_holds_are_refused() -> None:
    capacity = Capacity(max_sets=1, max_latents=100, max_requests=1, max_sets_per_request=1)
    tables = SteeringTables([1], D_MODEL, 2, capacity, torch.float32, "cpu")
    with pytest.raises(ValueError, match="layer 1: expected at most 64 live latents, got 65"):
        tables.load(make_set(65))
    tables.load(make_set(64))


def test_what_overflows_the_models_dtype_is_refused() -> None:
    capacity = Capacity(max_sets=1, max_latents=1, max_requests=1, max_sets_per_request=1)
    tables = SteeringTables([1], D_MODEL, 2, capacity, torch.float16, "cpu")
    large = LatentSet.from_vector(torch.full((D_MODEL,), 1e5), layer=1, num_layers=2)
    with pytest.raises(ValueError, match=r"vector at layer 1: .* within torch\.float16"):
        tables.load(large)
    assert not tables.slots
