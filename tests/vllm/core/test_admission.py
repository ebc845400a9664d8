"""Who goes in, as what, and who waits where there is no room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from offered import catalog, core_request
from stand_in_core import Core, admission, save, taken_in

from saif_kernels import Window
from saif_vllm.catalog import SetCatalog
from saif_vllm.core.admission import Admission
from saif_vllm.request import SetUse, Steered, get_placed


@pytest.fixture
def core(tmp_path: Path) -> Core:
    save(tmp_path, a=1, b=2, c=3)
    return Core(tmp_path, max_sets=2)


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
    assert core.ask("a + b").placed  # nothing of the aborted one was left behind


def test_who_waits_behind_one_that_is_aborted_goes_on(core: Core) -> None:
    first, second, third = core.ask("a"), core.ask("b + c"), core.ask("b")
    assert core.running == [first]
    core.admission.abort({second.request_id})
    core.drain()
    assert core.running == [first, third]


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
    assert core.residency.loaded == []
    assert core.piece("b") is not first


def test_a_piece_that_asks_for_something_else_does_not_continue_its_session(core: Core) -> None:
    first, continues = core.piece("a", resumable=True), Admission.continues_session
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
    assert not core.admission._requeued


def test_requests_that_share_their_parameters_are_admitted_each(core: Core) -> None:
    # As those of n > 1 do.
    first, second = core_request({"saif": "a"}, "0-x"), core_request(None, "1-x")
    second.sampling_params = shared = first.sampling_params
    for request in (first, second):
        admitted = core.admission.admit(request)
        assert admitted is not None
        assert request.sampling_params.extra_args == {"saif": admitted.steered}
    assert shared.extra_args == {"saif": "a"}


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


@pytest.fixture
def admitting(offered: SetCatalog) -> Admission:
    return admission(offered)


def test_the_core_puts_what_was_asked_for_in_place_of_the_users_keys(
    admitting: Admission, offered: SetCatalog
) -> None:
    asked = {"saif": "add_last*0.5 + both", "saif_start": 2, "other": 1}
    request = core_request(asked)
    admitted = admitting.admit(request)
    assert admitted is not None
    hashes = [offered[name].latent_set.content_hash for name in ("add_last", "both")]
    assert request.sampling_params.extra_args == {
        "other": 1,
        "saif": Steered(
            sets=(
                SetUse("add_last", hashes[0], 0.5, changes_kv=False),
                SetUse("both", hashes[1], 1.0, changes_kv=True),
            ),
            window=Window(start=2),
            request_id="0",
            serial=0,
        ),
    }
    assert list(admitted.sets) == hashes
    # Children of one request share the dictionary.
    assert asked == {"saif": "add_last*0.5 + both", "saif_start": 2, "other": 1}


def test_outputs_of_one_request_may_share_their_parameters(admitting: Admission) -> None:
    # In an engine of one process the children of a request with n > 1 do.
    first, second = core_request({"saif": "add_last"}), core_request(None)
    second.sampling_params = first.sampling_params
    one, other = admitting.admit(first), admitting.admit(second)
    assert one is not None and other is not None
    assert one.steered.sets == other.steered.sets
    assert (one.steered.serial, other.steered.serial) == (0, 1)


def test_only_what_the_core_admitted_reaches_the_worker(admitting: Admission) -> None:
    request = core_request({"saif": "add_last"})
    asked = admitting.admit(request)
    assert asked is not None
    # The user's own keys, the same in the core's form, and without a place for its set.
    for extra_args in (
        {"saif": "add_last"},
        {"saif": msgspec.to_builtins(asked.steered)},
        request.sampling_params.extra_args,
    ):
        with pytest.raises(RuntimeError, match="unchecked"):
            get_placed(SimpleNamespace(extra_args=extra_args))
    request.saif_admitted = asked
    admitting.add(request, lambda: None, lambda: None)
    assert get_placed(request.sampling_params) is asked.placed is not None
    assert asked.placed.slots == (0,)
    assert get_placed(SimpleNamespace(extra_args={"other": 1})) is None
    assert get_placed(None) is None


def test_the_core_checks_what_went_past_the_front_end(admitting: Admission) -> None:
    for bad in ({"saif": "nothing"}, {"siaf": "add_last"}, {"saif": 3}, {"saif": {"sets": []}}):
        with pytest.raises(ValueError, match="available"):
            admitting.admit(core_request(bad))


def test_requests_that_are_not_for_us_pass(admitting: Admission) -> None:
    for extra_args in (None, {}, {"other": 1}):
        request = core_request(extra_args)
        assert admitting.admit(request) is None
        assert request.sampling_params.extra_args is extra_args
    assert admitting.admit(SimpleNamespace(sampling_params=None)) is None
