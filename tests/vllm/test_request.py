from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from offered import catalog, core_request

from saif_kernels import Window
from saif_vllm import seams
from saif_vllm.admission import Admission
from saif_vllm.catalog import SetCatalog
from saif_vllm.request import SetUse, Steered, parse, read
from saif_vllm.validation import (
    check_parameters,
    check_session,
    checked_pieces,
    refuse_steering,
    with_plain_values,
)


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


@pytest.fixture
def core(offered: SetCatalog) -> Admission:
    return Admission(offered, lambda placement, compiled: None, lambda: None)


def test_the_core_puts_what_was_asked_for_in_place_of_the_users_keys(
    core: Admission, offered: SetCatalog
) -> None:
    asked = {"saif": "add_last*0.5 + both", "saif_start": 2, "other": 1}
    request = core_request(asked)
    admitted = core.admit(request)
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
            admission=0,
        ),
    }
    assert list(admitted.sets) == hashes
    # Children of one request share the dictionary.
    assert asked == {"saif": "add_last*0.5 + both", "saif_start": 2, "other": 1}


def test_outputs_of_one_request_may_share_their_parameters(core: Admission) -> None:
    # In an engine of one process the children of a request with n > 1 do.
    first, second = core_request({"saif": "add_last"}), core_request(None)
    second.sampling_params = first.sampling_params
    one, other = core.admit(first), core.admit(second)
    assert one is not None and other is not None
    assert one.steered.sets == other.steered.sets
    assert (one.steered.admission, other.steered.admission) == (0, 1)


def test_an_engine_without_steering_refuses_to_be_asked() -> None:
    assert parse({"other": 1, "siaf": 1}, None) is None
    for asked in ({"saif": "french"}, {"saif_start": 1}, {"saif": {"sets": []}}):
        with pytest.raises(ValueError, match="this engine does not steer"):
            parse(asked, None)
        with pytest.raises(ValueError, match="this engine does not steer"):
            refuse_steering(core_request(asked))
    refuse_steering(SimpleNamespace(sampling_params=None))


def test_only_what_the_core_admitted_reaches_the_worker(core: Admission) -> None:
    request = core_request({"saif": "add_last"})
    asked = core.admit(request)
    assert asked is not None
    # The user's own keys, the same in the core's form, and without a place for its set.
    for extra_args in (
        {"saif": "add_last"},
        {"saif": msgspec.to_builtins(asked.steered)},
        request.sampling_params.extra_args,
    ):
        with pytest.raises(RuntimeError, match="unchecked"):
            read(SimpleNamespace(extra_args=extra_args))
    request.saif = asked
    core.add(request, lambda: None, lambda: None)
    assert read(request.sampling_params) is asked.steered
    assert asked.steered.sets[0].slot >= 0
    assert read(SimpleNamespace(extra_args={"other": 1})) is None
    assert read(None) is None


def test_the_core_checks_what_went_past_the_front_end(core: Admission) -> None:
    for bad in ({"saif": "nothing"}, {"siaf": "add_last"}, {"saif": 3}, {"saif": {"sets": []}}):
        with pytest.raises(ValueError, match="available"):
            core.admit(core_request(bad))


def test_requests_that_are_not_for_us_pass(core: Admission) -> None:
    for extra_args in (None, {}, {"other": 1}):
        request = core_request(extra_args)
        assert core.admit(request) is None
        assert request.sampling_params.extra_args is extra_args
    assert core.admit(SimpleNamespace(sampling_params=None)) is None


def test_sets_that_never_fit_together_are_refused(set_dir: Path) -> None:
    asked = {"saif": "clamp_last + vector_last"}
    with pytest.raises(ValueError, match="max_sets: expected at most 1 sets, got 2"):
        parse(asked, catalog(set_dir, max_sets=1))
    with pytest.raises(ValueError, match="max_latents: expected at most 8 live latents at layer 2"):
        parse({"saif": "add_gated_last + project_last"}, catalog(set_dir, max_latents=8))


def test_streaming_input_is_for_the_last_layer(offered: SetCatalog) -> None:
    vllm = pytest.importorskip("vllm")

    def check(text: str) -> None:
        check_session(vllm.SamplingParams(extra_args={"saif": text}), offered)

    check("add_last")
    with pytest.raises(ValueError, match="at the last layer with streaming input, got 'both'"):
        check("both + add_last")


ADD, HALF = {"saif": "add_last"}, {"saif": "add_last*0.5"}


@pytest.mark.parametrize(
    ("session", "pieces", "let_through"),
    [
        # Of the call that begins it. None: a piece without parameters of its own.
        (ADD, (ADD, None, {**ADD, "other": 1}), 3),
        ({}, (None, {}), 2),
        (ADD, (ADD, HALF), 1),
        (ADD, ({},), 0),
        (ADD, ({**ADD, "saif_stop": 2},), 0),
        ({}, (None, ADD), 1),
    ],
)
def test_pieces_ask_for_what_their_session_does(
    offered: SetCatalog,
    session: dict[str, object],
    pieces: tuple[dict[str, object] | None, ...],
    let_through: int,
) -> None:
    expected = "the same in all pieces of a streaming input"
    assert pieces_let_through(offered, session, pieces, expected) == let_through


def test_a_piece_is_checked_for_more_than_its_set(offered: SetCatalog) -> None:
    assert pieces_let_through(offered, ADD, ({**ADD, "siaf": 1},), "'siaf'") == 0
    scores = {"prompt_logprobs": 1}
    assert pieces_let_through(offered, ADD, (ADD,), "the unsteered model's", **scores) == 0


def pieces_let_through(
    offered: SetCatalog,
    session: dict[str, object],
    pieces: Sequence[dict[str, object] | None],
    refusal: str,
    **options: Any,
) -> int:
    """How many of them, before one is refused; ``options`` are of the pieces' parameters."""
    vllm = pytest.importorskip("vllm")
    passed = 0

    async def stream() -> AsyncIterator[object]:
        for extra_args in pieces:
            own = (
                extra_args
                if extra_args is None
                else vllm.SamplingParams(extra_args=extra_args, **options)
            )
            yield SimpleNamespace(sampling_params=own)

    async def pull() -> None:
        nonlocal passed
        params = vllm.SamplingParams(extra_args=session)
        async for _ in checked_pieces(stream(), params, offered):
            passed += 1

    try:
        asyncio.run(pull())
    except ValueError as error:
        assert passed < len(pieces) and refusal in str(error)
    return passed


@pytest.mark.parametrize("session", [ADD, {}], ids=["steered", "unsteered"])
@pytest.mark.parametrize("piece", [HALF, {}, ADD], ids=["half", "unsteered", "steered"])
def test_the_core_ends_a_session_that_changes_its_mind(
    core: Admission, session: dict[str, object], piece: dict[str, object]
) -> None:
    requests: dict[str, Any] = {}
    ended: list[list[str]] = []
    engine = SimpleNamespace(
        saif=core,
        scheduler=SimpleNamespace(requests=requests),
        request_block_hasher=None,
        abort_requests=core.abort,
        _send_error_outputs_to_client=lambda ids, client: ended.append(ids),
    )

    def send(extra_args: dict[str, object], request_id: str) -> None:
        sent = core_request(extra_args, request_id, resumable=True, client_index=0)
        found, wave = seams._preprocess_add_request(lambda core, sent: (sent, 0), engine, sent)
        seams._add_request(
            lambda core, sent, wave: requests.setdefault(sent.request_id, sent), engine, found, wave
        )

    send(session, "0-other")
    for extra_args in (session, session, piece):
        send(extra_args, "0-session")
    assert ended == ([] if piece == session else [["0-session"]])
    assert requests.keys() == {"0-other", "0-session"}
    send(session, "0-other")
    assert len(ended) <= 1


class Name(enum.StrEnum):
    ADD = "add_last"


class Row(enum.IntEnum):
    FIRST = 0


NOT_PLAIN = {
    "saif": Name.ADD,
    "saif_scope": np.str_("all"),
    "saif_start": np.float64(2),
    "saif_decay": np.linspace(0, 1, 3)[1],
    "saif_capture": Row.FIRST,
}
PLAIN = {
    "saif": "add_last",
    "saif_scope": "all",
    "saif_start": 2.0,
    "saif_decay": 0.5,
    "saif_capture": 0,
}


def same(got: Any, expected: dict[str, object]) -> bool:
    """Equal, also in their types."""
    kinds = {key: type(value) for key, value in expected.items()}
    return got == expected and {key: type(value) for key, value in got.items()} == kinds


@pytest.mark.parametrize("skip_clone", [False, True], ids=["", "skip-clone"])
def test_what_passes_travels_as_plain_values(skip_clone: bool, set_dir: Path) -> None:
    vllm = pytest.importorskip("vllm")
    from vllm.v1.serial_utils import MsgpackEncoder

    others = {"other": [1], "an_array": (array := np.zeros(2))}
    params = vllm.SamplingParams(extra_args={**NOT_PLAIN, **others}, skip_clone=skip_clone)
    sent: list[Any] = []
    front_end = SimpleNamespace(saif=catalog(set_dir, max_captures=1))

    def original(self: Any, request_id: str, prompt: None, params: Any) -> Any:
        sent.append(params)
        return SimpleNamespace(sampling_params=params)  # as a clone, which it may not be

    seams._process_inputs(original, front_end, "0", None, params)
    assert sent[0].extra_args["an_array"] is array
    assert same({key: sent[0].extra_args[key] for key in PLAIN}, PLAIN)
    MsgpackEncoder().encode(sent[0])
    # The caller's own are shared between his requests.
    assert same(params.extra_args, {**NOT_PLAIN, **others})


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.int64(1), np.array(0.5), True], ids=lambda value: type(value)
)
def test_what_is_not_plain_does_not_pass(value: object, offered: SetCatalog) -> None:
    vllm = pytest.importorskip("vllm")
    for key in ("saif", "saif_scope", "saif_start", "saif_stop", "saif_decay", "saif_capture"):
        params = vllm.SamplingParams(extra_args={"saif": "add_last", key: value})
        with pytest.raises(ValueError, match=f"{key}: expected"):
            check_parameters(with_plain_values(params), offered)


def test_parameters_without_our_keys_are_not_even_copied() -> None:
    vllm = pytest.importorskip("vllm")
    for params in (vllm.SamplingParams(extra_args={"a": 1}), vllm.SamplingParams()):
        assert with_plain_values(params) is params
    pooling = vllm.PoolingParams(extra_kwargs={"saif": "add_last"})
    assert with_plain_values(pooling) is pooling


def test_pieces_travel_as_plain_values(offered: SetCatalog) -> None:
    vllm = pytest.importorskip("vllm")
    plain_keys = {"saif": "add_last", "saif_decay": 0.5}
    # float32 equals what was checked, but could not be sent.
    own = {"saif": Name.ADD, "saif_decay": np.float32(0.5), "other": 1}
    found: list[Any] = []

    async def stream() -> AsyncIterator[object]:
        for extra_args in (own, None):
            params = None if extra_args is None else vllm.SamplingParams(extra_args=extra_args)
            yield SimpleNamespace(sampling_params=params)

    async def pull(core: Any, request_id: str, pieces: Any, params: Any) -> None:
        found.extend([piece.sampling_params async for piece in pieces])
        found.append(params)

    session = vllm.SamplingParams(
        extra_args={"saif": np.str_("add_last"), "saif_decay": np.float64(0.5)}
    )
    engine = SimpleNamespace(input_processor=SimpleNamespace(saif=offered))
    asyncio.run(seams._add_streaming_input_request(pull, engine, "0", stream(), session))
    first, second, begun = found
    assert same(first.extra_args, {"other": 1, **plain_keys})
    assert second is None and same(begun.extra_args, plain_keys)


def test_a_request_that_ends_before_its_window_is_refused(offered: SetCatalog) -> None:
    vllm = pytest.importorskip("vllm")
    late = {"saif": "add_last", "saif_start": 4}
    check_parameters(vllm.SamplingParams(max_tokens=5, extra_args=late), offered)
    with pytest.raises(ValueError, match=r"saif_start: .* 4, got 4"):
        check_parameters(vllm.SamplingParams(max_tokens=4, extra_args=late), offered)
    session = vllm.SamplingParams(max_tokens=5, extra_args=late)
    assert pieces_let_through(offered, session.extra_args, (late,), "saif_start", max_tokens=4) == 0


def test_what_differs_between_pieces_is_quoted_briefly(offered: SetCatalog) -> None:
    long = {**ADD, "saif_scope": "x" * 100_000, "other": "y" * 100_000}
    assert pieces_let_through(offered, ADD, (long,), "saif_scope: expected the same") == 0


def test_pooling_is_not_steered(offered: SetCatalog) -> None:
    pytest.importorskip("vllm.pooling_params")
    from vllm import PoolingParams, SamplingParams

    with pytest.raises(ValueError, match="a generation request, got a pooling request"):
        check_parameters(PoolingParams(extra_kwargs={"saif": "add_last"}), offered)
    assert check_parameters(PoolingParams(), offered) is None
    assert check_parameters(SamplingParams(extra_args={"saif": "add_last"}), offered) is not None
