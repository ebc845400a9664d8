"""The front end refuses what cannot be had, and sends on what it has checked."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from offered import catalog

from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend import patches
from saif_vllm.frontend.validation import (
    check_parameters,
    check_session,
    checked_pieces,
    with_plain_values,
)


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


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
    """Count the pieces before one is refused; ``options`` are of the pieces' parameters."""
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
    """Return whether they are equal, also in their types."""
    kinds = {key: type(value) for key, value in expected.items()}
    return got == expected and {key: type(value) for key, value in got.items()} == kinds


@pytest.mark.parametrize("skip_clone", [False, True], ids=["", "skip-clone"])
def test_what_passes_travels_as_plain_values(skip_clone: bool, set_dir: Path) -> None:
    vllm = pytest.importorskip("vllm")
    from vllm.v1.serial_utils import MsgpackEncoder

    others = {"other": [1], "an_array": (array := np.zeros(2))}
    params = vllm.SamplingParams(extra_args={**NOT_PLAIN, **others}, skip_clone=skip_clone)
    sent: list[Any] = []
    front_end = SimpleNamespace(saif_catalog=catalog(set_dir, max_captures=1))

    def original(self: Any, request_id: str, prompt: None, params: Any) -> Any:
        sent.append(params)
        return SimpleNamespace(sampling_params=params)  # as a clone, which it may not be

    patches._process_inputs(original, front_end, "0", None, params)
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
    engine = SimpleNamespace(input_processor=SimpleNamespace(saif_catalog=offered))
    asyncio.run(patches._add_streaming_input_request(pull, engine, "0", stream(), session))
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
