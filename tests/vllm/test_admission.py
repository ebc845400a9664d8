"""Sets are loaded for requests and kept for them; requests wait where there is no room."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from offered import catalog, core_request, vector

from saif_vllm.admission import Admission, Asked


class Core:
    """An engine core of which only admission is real."""

    def __init__(self, folder: Path, **capacity: int) -> None:
        self.folder = folder
        self.slots: dict[int, float] = {}  # what the workers hold: the vector's value, by slot
        self.admission = Admission(catalog(folder, **capacity), self._write)
        self.running: list[Asked] = []
        self.resubmitted: list[Asked] = []
        self._ids = 0

    def _write(self, placement: Any, compiled: Any) -> None:
        assert all(placement.slot not in self._used(asked) for asked in self.running)
        self.slots[placement.slot] = float(compiled[2].vector[0])

    @staticmethod
    def _used(asked: Asked) -> set[int]:
        return {use.slot for use in asked.steered.sets}

    def ask(self, text: str) -> Asked:
        self._ids += 1
        asked = self.admission.admit(core_request({"saif": text}, f"{self._ids}-abc"))
        assert asked is not None
        self.add(asked)
        return asked

    def add(self, asked: Asked) -> None:
        self.admission.add(
            asked, lambda: self.running.append(asked), lambda: self.resubmitted.append(asked)
        )

    def drain(self) -> None:
        """What the core does before its next step."""
        while self.resubmitted:
            self.add(self.resubmitted.pop(0))

    def end(self, asked: Asked) -> None:
        self.running.remove(asked)
        asked.release()

    def values(self, asked: Asked) -> list[float]:
        """What the workers would add for a request."""
        return [self.slots[use.slot] for use in asked.steered.sets]


def save(folder: Path, **values: float) -> None:
    for name, value in values.items():
        vector(value).save(folder / f"{name}.safetensors")


@pytest.fixture
def core(tmp_path: Path) -> Core:
    save(tmp_path, a=1, b=2, c=3)
    return Core(tmp_path, max_sets=2)


def test_what_fits_is_loaded_at_start(core: Core) -> None:
    core.admission.preload()
    assert core.admission.loaded == ["a", "b"]
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
    assert core.admission.loaded == ["a", "c"]


def test_a_request_waits_for_room_and_those_behind_it_too(core: Core) -> None:
    first, second = core.ask("a"), core.ask("b")
    third, fourth, fifth = core.ask("c"), core.ask("a"), core.ask("b + c")
    assert core.running == [first, second]
    assert core.admission.waiting == 3
    core.end(second)
    core.drain()
    assert core.running == [first, third, fourth]  # c has taken b's place
    core.end(first)
    core.end(fourth)
    core.drain()
    assert core.running == [third, fifth]
    assert [core.values(asked) for asked in core.running] == [[3], [2, 3]]
    assert core.admission.waiting == 0


@pytest.mark.parametrize("when", ["waiting", "returning"])
def test_who_waits_may_be_aborted(core: Core, when: str) -> None:
    first, second, third, fourth = (core.ask(text) for text in ("a", "b", "c", "c"))
    if when == "returning":
        core.end(second)
    core.admission.abort({third.request_id})
    if when == "waiting":
        core.end(second)
    core.drain()
    assert core.running == [first, fourth]
    core.end(fourth)
    core.end(first)
    assert core.admission.waiting == 0
    assert core.ask("a + b").pinned  # nothing of the aborted one was left behind


def test_replacing_a_set_changes_no_running_request(core: Core) -> None:
    before = core.ask("a")
    save(core.folder, a=9)
    after = core.ask("a")
    assert (core.values(before), core.values(after)) == ([1], [9])
    core.end(before)
    assert core.admission.loaded == ["a"]  # the old content went with its last request
    assert core.values(after) == [9]


def test_a_removed_set_is_freed_when_its_last_request_ends(core: Core) -> None:
    one, other = core.ask("a"), core.ask("a*2")
    (core.folder / "a.safetensors").unlink()
    with pytest.raises(ValueError, match="unknown set 'a'; available sets: b, c"):
        core.ask("a")
    core.end(one)
    assert core.values(other) == [1]
    assert core.admission.loaded == ["a"]
    core.end(other)
    assert core.admission.loaded == []


def test_equal_content_shares_a_slot(core: Core) -> None:
    save(core.folder, same=1)
    one, other = core.ask("a"), core.ask("same")
    assert one.steered.sets[0].slot == other.steered.sets[0].slot
    assert core.values(core.ask("c")) == [3]  # there is a slot left


def test_random_comings_and_goings(tmp_path: Path) -> None:
    random.seed(0)
    core, wanted = Core(tmp_path, max_sets=3), {}
    names = [f"s{i}" for i in range(8)]
    asked: list[Asked] = []
    for turn in range(3000):
        action = random.random()
        name = random.choice(names)
        if action < 0.2:
            save(tmp_path, **{name: float(turn + 1)})
        elif action < 0.25:
            (tmp_path / f"{name}.safetensors").unlink(missing_ok=True)
        elif action < 0.6:
            there = [x for x in names if (tmp_path / f"{x}.safetensors").exists()]
            chosen = random.sample(there, min(len(there), random.randint(1, 3)))
            if chosen:
                new = core.ask(" + ".join(chosen))
                catalog = core.admission._catalog
                wanted[new] = [float(catalog[x].compiled[2].vector[0]) for x in chosen]
                asked.append(new)
        elif action < 0.9 and core.running:
            core.end(random.choice(core.running))
        elif asked:
            gone = random.choice(asked)
            core.admission.abort({gone.request_id})
            if gone in core.running:
                core.end(gone)
        if random.random() < 0.5:
            core.drain()
        for running in core.running:
            assert core.values(running) == wanted[running]
        assert len(core.admission.loaded) <= 3
    while core.running or core.resubmitted:
        core.drain()
        for running in list(core.running):
            core.end(running)
    assert core.admission.waiting == 0
    assert len(asked) > 500


def test_requests_that_share_their_parameters_are_admitted_each(core: Core) -> None:
    # As those of n > 1 do.
    first, second = core_request({"saif": "a"}, "0-x"), core_request(None, "1-x")
    second.sampling_params = shared = first.sampling_params
    for request in (first, second):
        asked = core.admission.admit(request)
        assert asked is not None
        assert request.sampling_params.extra_args == {"saif": asked.steered}
    assert shared.extra_args == {"saif": "a"}
