"""An engine as users start it, in three processes: bad requests are refused, good ones steered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_job import Job, Served, run
from hf_reference import Comparison

from saif_fast.embedded import model_path

pytestmark = pytest.mark.engine

KEYS = "saif, saif_scope, saif_start, saif_stop, saif_decay"
SETS = "add_last, "  # how the list of available sets goes on
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"siaf": "add_last"}, KEYS),
    "upper_case": ({"SAIF": "add_last"}, KEYS),
    "misspelt_option": ({"saif": "add_last", "saif_scop": "all"}, KEYS),
    "unknown_key": ({"saif": "add_last", "saif_layer": 3}, KEYS),
    "option_alone": ({"saif_scope": "all"}, SETS),
    "not_a_string": ({"saif": 3}, SETS),
    "list": ({"saif": ["add_last"]}, SETS),
    # What our own front end sends to the core: a user may not.
    "internal_form": ({"saif": {"sets": [], "window": [], "admitted": True}}, SETS),
    "unknown_set": ({"saif": "frensh"}, SETS),
    "syntax": ({"saif": "add_last**2"}, SETS),
    "empty": ({"saif": ""}, SETS),
    "nan": ({"saif": "add_last*nan"}, SETS),
    "infinite": ({"saif": "add_last*inf"}, SETS),
    "absurd": ({"saif": "add_last*11"}, "between -10 and 10"),
    "too_many": ({"saif": "add_last + vector_last + both + add_middle + scale_last"}, "at most 4"),
    "same_latent": ({"saif": "clamp_last + ablate_last"}, "both set latent"),
    "scope": ({"saif": "add_last", "saif_scope": "everything"}, "generated, prompt, all"),
    "nothing_shows": ({"saif": "add_last", "saif_scope": "prompt"}, "but the first token"),
    "nothing_shows_of_all": (
        {"saif": "add_last", "saif_scope": "all", "saif_stop": 1},
        "got 'all' up to saif_stop 1",
    ),
    "no_strength": ({"saif": "both + add_last*0"}, "other than 0 for set 'add_last'"),
    "never_reached": ({"saif": "add_last", "saif_start": 24}, "saif_start: expected less than"),
    "start": ({"saif": "add_last", "saif_start": -1}, "saif_start"),
    "decay": ({"saif": "add_last", "saif_decay": "nan"}, "saif_decay"),
}
GOOD = ("add_last", "clamp_middle", "unsteered", "both")
NUMPY = ("add_last", "decay", "all")


@pytest.fixture(scope="module")
def served(set_dir: Path, requests: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    good = [requests[name] for name in GOOD]
    # Beside a bad request there is a good one, which must not be served without the other.
    bad = [[good[0], {**good[0], "extra_args": extra_args}] for extra_args, _ in BAD.values()]
    # A user may have an extension, and limits, of his own.
    own = {"worker_extension_cls": "own_extension.OwnExtension", "max_sets_per_request": 4}
    of_numpy = [{**requests[name], "numpy": True} for name in NUMPY]
    batches = [good, *bad, ("own_method", {}), of_numpy, good]
    job = Job(model_path(), batches, set_dir=set_dir, engine_args=own, one_process=False)
    done = run(job).check()
    first, *refused, of_numpy, last = done.batches
    ends = {"first": first, "numpy": of_numpy, "last": last}
    return {**ends, **dict(zip(BAD, refused, strict=True))}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_a_value_error_that_names_what_there_is(name: str, served: Any) -> None:
    assert isinstance(served[name], dict), f"was served: {served[name]}"
    assert BAD[name][1] in served[name]["error"]


@pytest.mark.parametrize("when", ["first", "last"])
def test_the_engine_steers_before_and_after(
    when: str, served: Any, reference: Mapping[str, Any]
) -> None:
    comparison = Comparison()
    for name, got in zip(GOOD, served[when], strict=True):
        comparison.add(name, reference[name], got)
    comparison.check()


def test_values_of_numpy_reach_the_engine(served: Any, reference: Mapping[str, Any]) -> None:
    # What could not be sent used to leave a request that the next generate waited for.
    comparison = Comparison()
    for name, got in zip(NUMPY, served["numpy"], strict=True):
        comparison.add(name, reference[name], got)
    comparison.check()


WAITING = ("add_last", "unsteered", "clamp_middle", "vector_last", "add_last", "both")


@pytest.fixture(scope="module")
def in_turn(set_dir: Path, requests: Mapping[str, dict[str, Any]]) -> Served:
    """Serve requests for more sets than there is room for; one of them gives up waiting."""
    batch = [{**requests[name], "gives_up": name == "clamp_middle"} for name in WAITING]
    job = Job(
        model_path(),
        [batch, "saif_state"],
        set_dir=set_dir,
        engine_args={"max_sets": 1},
        site=["core_state"],
        one_process=False,
        asynchronous=True,
    )
    return run(job).check()


def test_who_waits_for_room_is_steered_in_turn(
    in_turn: Served, reference: Mapping[str, Any]
) -> None:
    comparison = Comparison()
    for name, got in zip(WAITING, in_turn.batches[0], strict=True):
        if name != "clamp_middle":
            comparison.add(name, reference[name], got)
    comparison.check(most_excused=0)


def test_who_gives_up_waiting_is_not_served_and_leaves_nothing_behind(in_turn: Served) -> None:
    gave_up = WAITING.index("clamp_middle")
    assert in_turn.batches[0][gave_up] == {"tokens": [], "finish_reason": "given up"}
    assert f"0.{gave_up}" not in [report["request_id"] for report in in_turn.reports]
    assert len(in_turn.reports) == len(WAITING) - 2  # nor is the unsteered one reported
    state = in_turn.batches[1]
    assert state["requests"] == state["uses of sets"] == state["waiting for room"] == 0
    assert state["sets loaded"] == state["sets placed"] == 1
