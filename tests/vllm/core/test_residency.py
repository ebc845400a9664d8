"""Sets are loaded for requests and kept for them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from stand_in_core import Core, save, slots_of

from saif_fast.set_dir import SetDirectory
from saif_vllm.core.admission import Admitted


@pytest.fixture
def core(tmp_path: Path) -> Core:
    save(tmp_path, a=1, b=2, c=3)
    return Core(tmp_path, max_sets=2)


def test_what_fits_is_loaded_at_start(core: Core) -> None:
    core.residency.preload()
    assert core.residency.loaded == ["a", "b"]
    assert core.slots == {0: 1.0, 1: 2.0}


def test_a_set_is_loaded_when_asked_for_and_stays(core: Core) -> None:
    first = core.ask("a*2 + b")
    assert core.values(first) == [1, 2]
    core.end(first)
    core.slots.clear()
    core.ask("a")  # still loaded: nothing is written
    assert core.slots == {}


def test_the_least_recently_used_makes_room(core: Core) -> None:
    for text in ("a", "b", "a", "c"):
        core.end(core.ask(text))
    assert core.residency.loaded == ["a", "c"]


def test_holes_between_idle_sets_keep_nobody_waiting(tmp_path: Path) -> None:
    for name, n_live in {"x": 3, "a": 4, "b": 6}.items():
        save(tmp_path, n_live, **{name: 1})
    core = Core(tmp_path, max_sets=3, max_latents=10)
    for text in ("x", "a"):
        core.end(core.ask(text))
    both = core.ask("a + b")  # a lies at rows 3 to 6
    assert core.running == [both]
    core.end(both)
    running = core.ask("x")
    waiting = core.ask("a + b")
    assert core.running == [running]
    core.end(running)
    core.drain()
    assert core.running == [waiting]


def test_replacing_a_set_changes_no_running_request(core: Core) -> None:
    before = core.ask("a")
    save(core.folder, a=9)
    after = core.ask("a")
    assert (core.values(before), core.values(after)) == ([1], [9])
    core.end(before)
    assert core.residency.loaded == ["a"]  # the old content went with its last request
    assert core.values(after) == [9]


def test_a_set_that_goes_while_an_engine_starts_is_left_out(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SetDirectory, "names", lambda self: ["a", "gone", "b"])
    core.catalog.check_sets()
    core.residency.preload()
    assert core.residency.loaded == ["a", "b"]


def test_a_removed_set_is_freed_when_its_last_request_ends(core: Core) -> None:
    one, other = core.ask("a"), core.ask("a*2")
    (core.folder / "a.safetensors").unlink()
    with pytest.raises(ValueError, match="unknown set 'a'; available sets: b, c"):
        core.ask("a")
    core.end(one)
    assert core.values(other) == [1]
    assert core.residency.loaded == ["a"]
    core.end(other)
    assert core.residency.loaded == []


def test_equal_content_shares_a_slot(core: Core) -> None:
    save(core.folder, same=1)
    one, other = core.ask("a"), core.ask("same")
    assert slots_of(one) == slots_of(other)
    assert core.values(core.ask("c")) == [3]  # there is a slot left


def test_random_comings_and_goings(tmp_path: Path) -> None:
    random.seed(0)
    core, wanted = Core(tmp_path, max_sets=3, max_latents=9), {}
    names = [f"s{i}" for i in range(8)]
    admitted: list[Admitted] = []
    for turn in range(3000):
        action = random.random()
        name = random.choice(names)
        if action < 0.2:
            save(tmp_path, random.randint(0, 3), **{name: float(turn + 1)})
        elif action < 0.25:
            (tmp_path / f"{name}.safetensors").unlink(missing_ok=True)
        elif action < 0.6:
            there = [x for x in names if (tmp_path / f"{x}.safetensors").exists()]
            chosen = random.sample(there, min(len(there), random.randint(1, 3)))
            if chosen:
                new = core.ask(" + ".join(chosen))
                wanted[new] = [float(core.catalog[x].edits[2].vector[0]) for x in chosen]
                admitted.append(new)
        elif action < 0.9 and core.running:
            core.end(random.choice(core.running))
        elif admitted:
            gone = random.choice(admitted)
            core.admission.abort({gone.request_id})
            if gone in core.running:
                core.end(gone)
        if random.random() < 0.5:
            core.drain()
        for running in core.running:
            assert core.values(running) == wanted[running]
        used = {slot for running in core.running for slot in core._used(running)}
        assert sum(len(core.rows[slot]) for slot in used) == len(
            set().union(*(core.rows[slot] for slot in used))
        )
        assert len(core.residency.loaded) <= 3
    while core.running or core.resubmitted:
        core.drain()
        for running in list(core.running):
            core.end(running)
    assert core.admission.waiting == 0
    assert len(admitted) > 500
