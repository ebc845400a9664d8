"""Sets are loaded for requests and kept for them; requests wait where there is no room."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from offered import core_request
from stand_in_core import Core, save, taken_in

from saif_fast.set_dir import SetDirectory
from saif_vllm.admission import Admission, Admitted


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
    assert [core.values(admitted) for admitted in core.running] == [[3], [2, 3]]
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


def test_who_waits_behind_one_that_is_aborted_goes_on(core: Core) -> None:
    first, second, third = core.ask("a"), core.ask("b + c"), core.ask("b")
    assert core.running == [first]
    core.admission.abort({second.request_id})
    core.drain()
    assert core.running == [first, third]


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


def test_all_pieces_of_a_streaming_input_have_the_sets_that_it_began_with(core: Core) -> None:
    first = core.piece("a", resumable=True)
    core.add(first)
    save(core.folder, a=9)
    assert core.piece("a", resumable=True) is first
    (core.folder / "a.safetensors").unlink()
    end = core.piece("a", resumable=False)
    assert end is first and not first.changed
    core.add(end)
    assert core.values(first) == [1]
    assert core.piece("b", resumable=True) is first and first.changed
    first.release()
    assert core.admission.loaded == []
    assert core.piece("b") is not first


def test_a_piece_that_asks_for_something_else_does_not_continue_its_session(core: Core) -> None:
    first, continues = core.piece("a", resumable=True), Admission.continues
    steered, unsteered = taken_in(first, resumable=True), taken_in(None, resumable=True)
    for piece in (steered, unsteered):
        assert continues(piece, None) and continues(piece, piece)
    assert not continues(steered, unsteered) and not continues(unsteered, steered)
    core.piece("b", resumable=True)
    assert not continues(steered, steered)
    assert continues(taken_in(first), steered)  # the mark of its end


def test_a_request_that_asks_for_nothing_waits_for_nobody(core: Core) -> None:
    core.ask("a + b"), core.ask("c")
    done: list[str] = []
    core.admission.add(taken_in(None), lambda: done.append("proceed"), lambda: done.append("again"))
    assert (core.admission.waiting, done) == (1, ["proceed"])


def test_pieces_wait_for_room_in_turn(core: Core) -> None:
    first, _ = core.ask("a"), core.ask("b")
    pieces = [core.piece("c", resumable=True) for _ in range(2)]
    for piece in pieces:
        core.add(piece)
    core.end(first)
    core.drain()
    assert core.running[-2:] == pieces and pieces[0] is pieces[1]
    assert not core.admission._returning


def test_replacing_a_set_changes_no_running_request(core: Core) -> None:
    before = core.ask("a")
    save(core.folder, a=9)
    after = core.ask("a")
    assert (core.values(before), core.values(after)) == ([1], [9])
    core.end(before)
    assert core.admission.loaded == ["a"]  # the old content went with its last request
    assert core.values(after) == [9]


def test_a_set_that_goes_while_an_engine_starts_is_left_out(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SetDirectory, "names", lambda self: ["a", "gone", "b"])
    core.admission._catalog.check()
    core.admission.preload()
    assert core.admission.loaded == ["a", "b"]


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
                catalog = core.admission._catalog
                wanted[new] = [float(catalog[x].compiled[2].vector[0]) for x in chosen]
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
        assert len(core.admission.loaded) <= 3
    while core.running or core.resubmitted:
        core.drain()
        for running in list(core.running):
            core.end(running)
    assert core.admission.waiting == 0
    assert len(admitted) > 500


def test_requests_that_share_their_parameters_are_admitted_each(core: Core) -> None:
    # As those of n > 1 do.
    first, second = core_request({"saif": "a"}, "0-x"), core_request(None, "1-x")
    second.sampling_params = shared = first.sampling_params
    for request in (first, second):
        admitted = core.admission.admit(request)
        assert admitted is not None
        assert request.sampling_params.extra_args == {"saif": admitted.steered}
    assert shared.extra_args == {"saif": "a"}
