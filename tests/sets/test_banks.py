"""Slots and pool rows: sharing by content, reuse after freeing, refusals that change nothing."""

from __future__ import annotations

import pytest
import torch

from saif_fast.banks import HookedModel, LayerBanks
from saif_fast.edits import Edit
from saif_fast.latent_set import Latent, LatentSet, Site, SiteTensors
from saif_fast.placement import NoRoom, SlotAllocator

D_MODEL = 4
MODEL = HookedModel((1,), D_MODEL, 2, torch.float32)


def make_set(k: int, layer: int = 1, value: float = 1.0) -> LatentSet:
    latents = [Latent(index=i, edit=Edit("clamp", value)) for i in range(k)]
    rows = torch.full((k, D_MODEL), value)
    tensors = SiteTensors(Site(layer, latents), rows, torch.zeros(k), torch.zeros(k), rows)
    return LatentSet((tensors,), D_MODEL, 2)


def vector(value: float, layer: int = 1) -> LatentSet:
    return LatentSet.from_vector(torch.full((D_MODEL,), value), layer=layer, num_layers=2)


@pytest.fixture
def slots() -> SlotAllocator:
    return SlotAllocator([1], max_sets=3, max_latents=8)


@pytest.fixture
def tables() -> LayerBanks:
    return LayerBanks(MODEL, 3, 8, "cpu")


def load(slots: SlotAllocator, tables: LayerBanks, latent_set: LatentSet) -> int:
    placement = slots.place(latent_set)
    tables.write_set(placement, MODEL.edits_by_layer(latent_set, 8))
    return placement.slot


def test_equal_content_is_placed_once(slots: SlotAllocator) -> None:
    assert slots.place(make_set(2)) == slots.place(make_set(2))
    assert slots.place(make_set(2, value=2.0)).slot != slots.place(make_set(2)).slot


def test_rows_of_different_sets_do_not_overlap(slots: SlotAllocator, tables: LayerBanks) -> None:
    wanted = [(3, 1.0), (4, 2.0)]
    found = [load(slots, tables, make_set(k, value=value)) for k, value in wanted]
    bank = tables.banks[1]
    for slot, (k, value) in zip(found, wanted, strict=True):
        begin = int(bank.offset[slot])
        assert int(bank.n_latents[slot]) == k
        assert (bank.W_enc[begin : begin + k] == value).all()
        assert (bank.p[begin : begin + k] == value).all()


def test_a_hole_is_used_again(slots: SlotAllocator) -> None:
    sets = [make_set(k, value=float(i)) for i, k in enumerate((3, 2, 3), start=1)]
    for latent_set in sets:
        slots.place(latent_set)
    freed = slots.free(sets[1].content_hash)
    new = make_set(2, value=9.0)
    assert slots.place(new) == freed == (1, {1: 3})
    assert set(slots.placed) == {s.content_hash for s in (sets[0], sets[2], new)}


def test_what_an_earlier_set_left_in_a_slot_is_gone(
    slots: SlotAllocator, tables: LayerBanks
) -> None:
    first, second = make_set(2), vector(3.0)
    slot = load(slots, tables, first)
    slots.free(first.content_hash)
    assert load(slots, tables, second) == slot
    assert int(tables.banks[1].n_latents[slot]) == 0
    assert (tables.banks[1].vector[slot] == 3).all()


def test_a_full_pool_or_no_slot_is_refused_and_nothing_changes(slots: SlotAllocator) -> None:
    slots.place(make_set(5))
    with pytest.raises(NoRoom, match="max_latents: 4 live latents do not fit in the 8 rows"):
        slots.place(make_set(4))
    assert len(slots.placed) == 1
    slots.place(make_set(1, value=2.0))
    slots.place(make_set(1, value=3.0))
    with pytest.raises(NoRoom, match="max_sets: all 3 slots are taken"):
        slots.place(make_set(1, value=4.0))


def edited(edit: str, weight: float = 1.0) -> LatentSet:
    rows = torch.full((1, D_MODEL), weight)
    latents = [Latent(index=0, edit=Edit.parse(edit))]
    tensors = SiteTensors(Site(1, latents), rows, torch.zeros(1), torch.zeros(1), rows)
    return LatentSet((tensors,), D_MODEL, 2)


@pytest.mark.parametrize(
    ("latent_set", "dtype"),
    [
        (vector(0.0), torch.float32),
        (vector(1e-9), torch.float16),
        (edited("add:0"), torch.float32),
        (edited("add:0@gated"), torch.float32),
        (edited("scale:1"), torch.float32),
        (edited("scale:1@gated"), torch.float32),
        (edited("ablate", weight=0.0), torch.float32),
    ],
    ids=["vector", "in-fp16", "add", "add-gated", "scale", "scale-gated", "no-direction"],
)
def test_a_set_that_changes_nothing_is_refused(latent_set: LatentSet, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="an edit that changes something"):
        HookedModel((1,), D_MODEL, 2, dtype).edits_by_layer(latent_set, 8)


@pytest.mark.parametrize("edit", ["at_least:0", "clamp:0", "ablate", "scale:0", "add:1@gated"])
def test_a_set_of_zeros_that_changes_something_is_not(edit: str) -> None:
    MODEL.edits_by_layer(edited(edit), 8)


@pytest.mark.parametrize(
    ("bad", "dtype", "message"),
    [
        (make_set(9), torch.float32, "layer 1: expected at most 8 live latents, got 9"),
        (make_set(1, layer=0), torch.float32, r"expected a hooked layer \(1\), got layer 0"),
        (
            LatentSet.from_vector(torch.ones(6), layer=1, num_layers=2),
            torch.float32,
            "hidden size 6",
        ),
        (vector(1e5), torch.float16, r"vector at layer 1: .* within torch\.float16"),
    ],
    ids=["too-many-latents", "layer", "model", "dtype"],
)
def test_what_never_fits_is_refused(bad: LatentSet, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HookedModel((1,), D_MODEL, 2, dtype).edits_by_layer(bad, max_latents=8)


def test_more_live_latents_than_a_kernel_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="layer 1: expected at most 64 live latents, got 65"):
        MODEL.edits_by_layer(make_set(65), max_latents=100)
    MODEL.edits_by_layer(make_set(64), max_latents=100)


def test_another_ranks_layer_is_hooked_but_has_no_bank() -> None:
    model = HookedModel((0, 1), D_MODEL, 2, torch.float32)
    tables = LayerBanks(model, 1, 1, "cpu", owned=[1])
    latent_set = make_set(1, layer=0)
    placement = SlotAllocator([0, 1], 1, 1).place(latent_set)
    tables.write_set(placement, model.edits_by_layer(latent_set, 1))
    assert list(tables.banks) == [1]
    assert int(tables.banks[1].n_latents[placement.slot]) == 0
