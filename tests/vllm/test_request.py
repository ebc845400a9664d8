from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from saif_fast.latent_set import LatentSet
from saif_kernels import Window
from saif_vllm.config import SteeringConfig
from saif_vllm.request import SetUse, Steered, admit, read, resolve, with_steering
from saif_vllm.sets import OfferedSets

CONFIG = SteeringConfig((1, 2), 32, 1024, 4, 10.0, "1")


@pytest.fixture(scope="module")
def offered(sets: Mapping[str, LatentSet]) -> OfferedSets:
    return OfferedSets(sets, CONFIG, hidden_size=64, num_layers=3)


def core_request(extra_args: object, salt: str | None = None, **fields: Any) -> Any:
    return SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args=extra_args),
        cache_salt=salt,
        **{"prompt_token_ids": [1, 2, 3], "prompt_embeds": None, "resumable": False, **fields},
    )


def admitted(
    asked: dict[str, object], offered: OfferedSets, salt: str | None = None, **fields: Any
) -> Any:
    request = core_request(asked, salt, **fields)
    admit(request, offered, CONFIG)
    return request


def test_names_become_hashes_and_other_keys_stay(
    offered: OfferedSets, sets: Mapping[str, LatentSet]
) -> None:
    asked = {"saif": "add_last*0.5 + both", "saif_start": 2, "other": 1}
    steered = resolve(asked, offered, CONFIG)
    assert steered == Steered(
        sets=(
            SetUse("add_last", sets["add_last"].content_hash, 0.5),
            SetUse("both", sets["both"].content_hash, 1.0),
        ),
        window=Window(start=2),
    )
    carried = with_steering(asked, steered)
    assert carried["other"] == 1
    assert "saif_start" not in carried
    # As it crosses to another process.
    assert msgspec.convert(msgspec.msgpack.decode(msgspec.msgpack.encode(carried["saif"])), Steered)
    assert asked == {"saif": "add_last*0.5 + both", "saif_start": 2, "other": 1}


def test_an_engine_without_steering_refuses_to_be_asked() -> None:
    assert resolve({"other": 1, "siaf": 1}, None, None) is None
    for asked in ({"saif": "french"}, {"saif_start": 1}):
        with pytest.raises(ValueError, match="this engine does not steer"):
            resolve(asked, None, None)
    with pytest.raises(ValueError, match="this engine does not steer"):
        admit(core_request({"saif": {"sets": []}}), None, None)


def test_only_what_the_core_admitted_reaches_the_worker(offered: OfferedSets) -> None:
    steered = resolve({"saif": "add_last"}, offered, CONFIG)
    assert steered is not None
    for extra_args in ({"saif": "add_last"}, with_steering(None, steered)):
        with pytest.raises(RuntimeError, match="unchecked"):
            read(extra_args)
    request = admitted(with_steering(None, steered), offered)
    assert read(request.sampling_params.extra_args) == msgspec.structs.replace(
        steered, admitted=True
    )
    assert read({"other": 1}) is None


def test_the_core_resolves_what_went_past_the_front_end(offered: OfferedSets) -> None:
    request = admitted({"saif": "add_last"}, offered)
    assert read(request.sampling_params.extra_args) is not None
    for bad in ({"saif": "nothing"}, {"siaf": "add_last"}, {"saif": 3}):
        with pytest.raises(ValueError, match="available"):
            admit(core_request(bad), offered, CONFIG)
    gone = Steered((SetUse("add_last", "0" * 64, 1.0),), Window())
    with pytest.raises(ValueError, match="set 'add_last' has changed since the engine started"):
        admit(core_request(with_steering(None, gone)), offered, CONFIG)


def test_admitting_leaves_a_shared_dictionary_alone(offered: OfferedSets) -> None:
    steered = resolve({"saif": "clamp_middle"}, offered, CONFIG)
    assert steered is not None
    shared = with_steering(None, steered)
    children = [core_request(shared) for _ in range(2)]
    for child in children:
        admit(child, offered, CONFIG)
    assert not shared["saif"]["admitted"]  # type: ignore[index]
    assert children[0].cache_salt == children[1].cache_salt


def test_requests_that_are_not_for_us_pass(offered: OfferedSets) -> None:
    for extra_args in (None, {}, {"other": 1}):
        assert admitted(extra_args, offered, "mine").cache_salt == "mine"  # type: ignore[arg-type]
    pooling = SimpleNamespace(sampling_params=None, cache_salt=None)
    admit(pooling, offered, CONFIG)
    assert pooling.cache_salt is None


@pytest.mark.parametrize("asked", ["add_last", "vector_last*2 + scale_last"])
def test_the_last_layer_changes_no_kv_and_needs_no_salt(asked: str, offered: OfferedSets) -> None:
    assert admitted({"saif": asked}, offered).cache_salt is None
    assert admitted({"saif": asked}, offered, "mine").cache_salt == "mine"


def test_below_it_everything_that_changes_kv_is_in_the_salt(offered: OfferedSets) -> None:
    asked: list[dict[str, object]] = [
        {"saif": "add_middle"},
        {"saif": "clamp_middle"},
        {"saif": "both"},
        {"saif": "add_middle*0.5"},
        {"saif": "add_middle", "saif_start": 1},
        {"saif": "add_middle", "saif_stop": 9},
        {"saif": "add_middle", "saif_scope": "all"},
        {"saif": "add_middle", "saif_scope": "prompt"},
        {"saif": "add_middle", "saif_decay": 0.1},
        {"saif": "add_middle", "saif_decay": "0.1,1"},
        {"saif": "add_middle + vector_middle"},
    ]
    salts = {admitted(extra_args, offered).cache_salt for extra_args in asked}
    salts |= {admitted(asked[0], offered, salt).cache_salt for salt in ("mine", "yours", "")}
    assert None not in salts
    assert len(salts) == len(asked) + 3


@pytest.mark.parametrize(
    ("window", "counts"),
    [
        ({}, True),
        ({"saif_scope": "prompt"}, True),
        ({"saif_scope": "all", "saif_decay": 0.1}, True),
        ({"saif_scope": "all"}, False),
    ],
    ids=["generated", "prompt", "decay", "everywhere"],
)
def test_where_the_prompt_ends_is_in_the_salt_unless_all_is_steered_alike(
    window: dict[str, object], counts: bool, offered: OfferedSets
) -> None:
    # One turn's reply is the next turn's prompt: steered there, and not here.
    salts = {
        admitted({"saif": "add_middle", **window}, offered, **prompt).cache_salt
        for prompt in (
            {"prompt_token_ids": [1] * 40},
            {"prompt_token_ids": [1] * 41},
            {"prompt_token_ids": None, "prompt_embeds": [0.0] * 42},
        )
    }
    assert len(salts) == (3 if counts else 1)


def test_streaming_input_is_refused(offered: OfferedSets) -> None:
    with pytest.raises(ValueError, match="got streaming input"):
        admit(core_request({"saif": "add_last"}, resumable=True), offered, CONFIG)
    admit(core_request({"other": 1}, resumable=True), offered, CONFIG)


def test_what_changes_no_kv_is_not_in_the_salt(offered: OfferedSets) -> None:
    salts = {
        admitted({"saif": text}, offered).cache_salt
        for text in ("add_middle", "add_middle + add_last", "vector_last*3 + add_middle")
    }
    assert len(salts) == 1
