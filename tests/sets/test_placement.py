"""Places of sets: none overlaps another, the first hole is used, and thousands are soon placed."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

from saif_fast.placement import NoRoom, SlotAllocator


def a_set(name: str, **n_live: int) -> Any:
    live = {int(layer[1:]): k for layer, k in n_live.items()}
    return SimpleNamespace(content_hash=name, n_live=live, layers=tuple(live))


def first_hole(taken: list[range], k: int, n_rows: int) -> int | None:
    return next(
        (i for i in range(n_rows - k + 1) if not any({*range(i, i + k)} & {*t} for t in taken)),
        None,
    )


def test_places_are_the_first_that_are_free() -> None:
    rng, n_rows = random.Random(0), 24
    slots = SlotAllocator([1, 2], max_sets=6, max_latents=n_rows)
    held: dict[str, dict[int, int]] = {}  # live latents by layer
    refused = 0
    for i in range(3000):
        if held and rng.random() < 0.45:
            name = rng.choice(sorted(held))
            assert slots.free(name).slot >= 0
            del held[name]
            continue
        name = f"s{i}"
        live = {layer: rng.choice((0, 0, 1, 3, 7)) for layer in rng.choice(((1,), (2,), (1, 2)))}
        before = dict(slots.placed)
        taken = {
            layer: [
                range(before[x].offset[layer], before[x].offset[layer] + k)
                for x in held
                if (k := held[x].get(layer, 0))
            ]
            for layer in live
        }
        expected = {
            layer: first_hole(taken[layer], k, n_rows) if k else 0 for layer, k in live.items()
        }
        free = set(range(6)) - {placement.slot for placement in before.values()}
        try:
            placement = slots.place(a_set(name, **{f"l{layer}": k for layer, k in live.items()}))
        except NoRoom:
            refused += 1
            assert not free or None in expected.values()
            assert dict(slots.placed) == before
            continue
        assert (placement.slot, placement.offset) == (min(free), expected)
        held[name] = live
    assert 100 < refused < 2000


@pytest.mark.parametrize("k", [0, 15])
def test_ten_thousand_sets_are_soon_placed(k: int) -> None:
    n = 10_000
    slots, sets = SlotAllocator([1], n, 16 * n), [a_set(f"s{i}", l1=k) for i in range(n)]
    began = time.process_time()
    for found in sets:
        slots.place(found)
    assert time.process_time() - began < 3  # by their squares it would be a minute
