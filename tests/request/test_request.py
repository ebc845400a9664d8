"""What a request may say, and the sentence it gets when it says something else."""

from __future__ import annotations

import math

import pytest

from saif_fast.request import check_keys, parse_request
from saif_kernels import OPEN_STOP, Window

AVAILABLE = ["formal", "french", "g-1.x"]


def parse(**extra_args: object) -> object:
    return parse_request(extra_args, available=AVAILABLE)


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}], ids=str)
def test_nothing_asked_for(extra_args: dict[str, object] | None) -> None:
    assert parse_request(extra_args, available=AVAILABLE) is None


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("french", (("french", 1.0),)),
        (" french * 1.5 ", (("french", 1.5),)),
        ("french*0.8 + formal*-0.4", (("french", 0.8), ("formal", -0.4))),
        ("g-1.x*1e+0+french*+2", (("g-1.x", 1.0), ("french", 2.0))),
        ("french*0", (("french", 0.0),)),
    ],
)
def test_sets_and_strengths(text: str, sets: tuple[tuple[str, float], ...]) -> None:
    request = parse_request({"saif": text}, available=AVAILABLE)
    assert request is not None and request.sets == sets and request.window == Window()


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({}, Window()),
        ({"saif_scope": "generated"}, Window()),
        ({"saif_scope": "all"}, Window(prompt=True)),
        ({"saif_scope": "prompt"}, Window(prompt=True, start=0, stop=1)),
        ({"saif_start": 2, "saif_stop": 5.0}, Window(start=2, stop=5)),
        ({"saif_decay": 0.5}, Window(omega=0.5)),
        ({"saif_decay": "0.5,2"}, Window(omega=0.5, power=2.0)),
        ({"saif_scope": "all", "saif_stop": 3}, Window(prompt=True, stop=3)),
    ],
    ids=str,
)
def test_windows(keys: dict[str, object], window: Window) -> None:
    request = parse_request({"saif": "french", **keys}, available=AVAILABLE)
    assert request is not None and request.window == window


BAD = [
    pytest.param({"saif": 3}, "expected a string .* french", id="number"),
    pytest.param({"saif": None}, "expected a string .* french", id="none"),
    pytest.param({"saif": ["french"]}, "expected a string .* french", id="list"),
    pytest.param({"saif": ""}, "between .* available sets: formal, french", id="empty"),
    pytest.param({"saif": "french+"}, "available sets: formal", id="trailing-plus"),
    pytest.param({"saif": "french formal"}, "available sets: formal", id="no-plus"),
    pytest.param({"saif": "french*"}, "available sets: formal", id="no-strength"),
    pytest.param({"saif": "0.5*french"}, "available sets: formal", id="strength-first"),
    pytest.param({"saif": "french*x"}, "strength between -10 and 10", id="word-strength"),
    pytest.param({"saif": "french*nan"}, "strength between -10 and 10", id="nan"),
    pytest.param({"saif": "french*-inf"}, "strength between -10 and 10", id="infinite"),
    pytest.param({"saif": "french*10.5"}, "strength between -10 and 10", id="absurd"),
    pytest.param({"saif": "frnch"}, "unknown set 'frnch'; .* formal, french, g-1.x", id="unknown"),
    pytest.param({"saif": "french + french"}, "given twice", id="twice"),
    pytest.param({"saifs": "french"}, "unknown steering argument 'saifs'; .* saif,", id="key"),
    pytest.param({"saif_start": 1}, "without 'saif'; available sets: formal", id="no-saif"),
    pytest.param({"saif": "french", "saif_scope": "some"}, "generated, prompt, all", id="scope"),
    pytest.param({"saif": "french", "saif_start": -1}, "saif_start: .* >= 0", id="start"),
    pytest.param({"saif": "french", "saif_start": True}, "saif_start", id="bool-start"),
    pytest.param({"saif": "french", "saif_start": 1.5}, "saif_start", id="fraction"),
    pytest.param({"saif": "french", "saif_start": math.inf}, "saif_start", id="infinite-start"),
    pytest.param({"saif": "french", "saif_stop": OPEN_STOP + 1}, "saif_stop", id="huge"),
    pytest.param(
        {"saif": "french", "saif_start": 3, "saif_stop": 3}, "saif_stop: .* 4", id="order"
    ),
    pytest.param({"saif": "french", "saif_decay": -1}, "saif_decay", id="negative-decay"),
    pytest.param({"saif": "french", "saif_decay": "1,2,3"}, "saif_decay", id="long-decay"),
    pytest.param({"saif": "french", "saif_decay": "nan"}, "saif_decay", id="nan-decay"),
    pytest.param({"saif": "french", "saif_decay": [1]}, "saif_decay", id="list-decay"),
    pytest.param({"saif": "french", "saif_decay": "1e39"}, "saif_decay", id="beyond-fp32"),
    pytest.param({"saif": "french", "saif_decay": "1,1e39"}, "saif_decay", id="power-beyond-fp32"),
    pytest.param({"saif": "french", "saif_decay": 10**400}, "saif_decay", id="beyond-a-float"),
    pytest.param(
        {"saif": "french", "saif_scope": "prompt", "saif_stop": 2}, "saif_stop: expected none",
        id="window-in-prompt",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("extra_args", "message"), BAD)
def test_anything_else_is_refused(extra_args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(**extra_args)


def test_a_message_quotes_the_beginning_of_what_is_long() -> None:
    with pytest.raises(ValueError, match=r"between .*; available sets: formal") as refused:
        parse(saif="x" * 100_000)
    assert len(str(refused.value)) < 500


def test_too_many_sets() -> None:
    with pytest.raises(ValueError, match="at most 2 sets"):
        parse_request({"saif": "french+formal+g-1.x"}, available=AVAILABLE, max_sets=2)


def test_strengths_go_further_when_configured() -> None:
    request = parse_request({"saif": "french*50"}, available=AVAILABLE, max_strength=100)
    assert request is not None and request.sets == (("french", 50.0),)


@pytest.mark.parametrize(
    "key",
    ["siaf", "sai", "saiff", "SAIF", "Saif", "saif-scope", "saif_scop", "siaf_start", "saifscope"],
)
def test_a_key_that_nearly_is_ours_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown steering argument '{key}'; available: saif, "):
        check_keys({key: "french"})


@pytest.mark.parametrize(
    "key",
    [
        "kv_transfer_params",
        "min_tokens",
        "start",
        "scope",
        "salt",
        "cache_salt",
        "thinking_budget",
        "max_think_tokens",
        "target_token",
        "seed",
        "safe",
        "safe_stop",
        "said",
        "n",
        "",
    ],
)
def test_keys_of_others_are_left_alone(key: str) -> None:
    check_keys({key: 1})


def test_keys_need_not_be_strings() -> None:
    check_keys({1: "x"})  # type: ignore[dict-item]


def test_a_misspelt_key_beside_nothing_else_is_refused_too() -> None:
    with pytest.raises(ValueError, match="unknown steering argument 'siaf'"):
        parse(siaf="french")
