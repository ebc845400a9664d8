from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from offered import catalog, core_request

from saif_kernels import Window
from saif_vllm.admission import Admission
from saif_vllm.catalog import SetCatalog
from saif_vllm.request import SetUse, Steered, parse, read
from saif_vllm.validation import (
    check_parameters,
    check_prompt,
    checked_pieces,
    refuse_steering,
)


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


@pytest.fixture
def core(offered: SetCatalog) -> Admission:
    return Admission(offered, lambda placement, compiled: None)


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
    assert one.steered.asks_the_same(other.steered)
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
    params = request.sampling_params
    # The user's own keys, the same in the core's form, and without a place for its set.
    for extra_args in (
        {"saif": "add_last"},
        {"saif": msgspec.to_builtins(asked.steered)},
        params.extra_args,
    ):
        with pytest.raises(RuntimeError, match="unchecked"):
            read(extra_args)
    core.add(asked, lambda: None, lambda: None)
    assert read({"saif": asked.steered}) is asked.steered
    assert asked.steered.sets[0].slot >= 0
    assert read({"other": 1}) is None


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
    def check(text: str, resumable: bool) -> None:
        asked = parse({"saif": text}, offered)
        assert asked is not None
        check_prompt(SimpleNamespace(resumable=resumable), asked)

    check("add_last", True)
    check("clamp_middle", False)
    with pytest.raises(ValueError, match="at the last layer with streaming input, got 'both'"):
        check("both + add_last", True)


@pytest.mark.parametrize(
    ("session", "pieces", "let_through"),
    [
        ("add_last", ("add_last", None, "add_last*1.0"), 3),  # None: the session's own
        (None, (None, None), 2),
        ("add_last", ("add_last", "add_last*0.5"), 1),
        ("add_last", ("both", "add_last"), 0),
        (None, (None, "add_last"), 1),
    ],
)
def test_pieces_ask_for_what_their_session_does(
    offered: SetCatalog, session: str | None, pieces: tuple[str | None, ...], let_through: int
) -> None:
    vllm = pytest.importorskip("vllm")

    def params(text: str | None) -> object:
        return vllm.SamplingParams(extra_args=None if text is None else {"saif": text})

    async def stream() -> AsyncIterator[object]:
        for text in pieces:
            yield SimpleNamespace(sampling_params=None if text is None else params(text))

    passed: list[object] = []

    async def pull() -> None:
        async for piece in checked_pieces(stream(), params(session), offered):
            passed.append(piece)

    if let_through == len(pieces):
        asyncio.run(pull())
    else:
        with pytest.raises(ValueError, match="the same in all pieces of a streaming input"):
            asyncio.run(pull())
    assert len(passed) == let_through


def test_a_piece_may_not_take_the_sessions_steering_away(offered: SetCatalog) -> None:
    vllm = pytest.importorskip("vllm")

    async def pull() -> None:
        async def stream() -> AsyncIterator[object]:
            yield SimpleNamespace(sampling_params=vllm.SamplingParams())

        session = vllm.SamplingParams(extra_args={"saif": "add_last"})
        async for _ in checked_pieces(stream(), session, offered):
            raise AssertionError("let through")

    with pytest.raises(ValueError, match="the same in all pieces of a streaming input"):
        asyncio.run(pull())


def test_pooling_is_not_steered(offered: SetCatalog) -> None:
    pytest.importorskip("vllm.pooling_params")
    from vllm import PoolingParams, SamplingParams

    with pytest.raises(ValueError, match="a generation request, got a pooling request"):
        check_parameters(PoolingParams(extra_kwargs={"saif": "add_last"}), offered)
    assert check_parameters(PoolingParams(), offered) is None
    assert check_parameters(SamplingParams(extra_args={"saif": "add_last"}), offered) is not None
