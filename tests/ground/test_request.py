"""What a request may say, and the sentence it gets when it says something else."""

from __future__ import annotations

import enum
import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saif_fast.request import (
    REQUEST_KEYS,
    check_keys,
    check_reached,
    parse_request,
    with_defaults,
)
from saif_fast.values import plain, quoted
from saif_fast.windows import MAX_DECAY
from saif_kernels import OPEN_STOP, Window

AVAILABLE = ["formal", "french", "g-1.x", "table", "v2e"]


def parse(**extra_args: object) -> object:
    return parse_request(extra_args, available=AVAILABLE)


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}], ids=str)
def test_nothing_asked_for(extra_args: dict[str, object] | None) -> None:
    assert parse_request(extra_args, available=AVAILABLE) is None


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("french", (("french", 1.0),)),
        ("french * 1.5", (("french", 1.5),)),
        ("french*0.8 + formal*-0.4", (("french", 0.8), ("formal", -0.4))),
        ("g-1.x*1e+0+french*+2", (("g-1.x", 1.0), ("french", 2.0))),
        ("french*.5+formal*1.e-1", (("french", 0.5), ("formal", 0.1))),
        ("g-1.x +french", (("g-1.x", 1.0), ("french", 1.0))),
        ("table+formal", (("table", 1.0), ("formal", 1.0))),
        ("v2e+french*2e+0+table", (("v2e", 1.0), ("french", 2.0), ("table", 1.0))),
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
    pytest.param({"saif": "french*0"}, "other than 0 for set 'french'.*leave the set", id="zero"),
    pytest.param({"saif": "formal+french*-0.0"}, "other than 0 for set 'french'", id="minus-zero"),
    pytest.param({"saif": "french*1e-50"}, "other than 0 for set 'french'", id="zero-in-fp32"),
    pytest.param({"saif": "french*0.\u0e55"}, "strength between -10 and 10", id="thai-digit"),
    pytest.param({"saif": "french*1_0"}, "strength between -10 and 10", id="underscore"),
    pytest.param({"saif": "french*0x1"}, "strength between -10 and 10", id="hexadecimal"),
    pytest.param({"saif": "french*1\n"}, "strength between -10 and 10", id="newline-strength"),
    pytest.param({"saif": " french"}, "with no space", id="space-before"),
    pytest.param({"saif": "french "}, "with no space", id="space-behind"),
    pytest.param({"saif": "french\n"}, "with no space", id="newline-behind"),
    pytest.param({"saif": "french\t+formal"}, "with no space", id="tab"),
    pytest.param({"saif": "french\u2003*2"}, "with no space", id="em-space"),
    pytest.param({"saif": "french\x00"}, "with no space", id="control"),
    pytest.param({"saif": "fr\u0435nch"}, "with no space", id="cyrillic"),
    pytest.param({"saif": "frnch"}, "unknown set 'frnch'; .* formal, french, g-1.x", id="unknown"),
    pytest.param({"saif": "french + french"}, "given twice", id="twice"),
    pytest.param({"saifs": "french"}, "unknown steering argument 'saifs'; .* saif,", id="key"),
    pytest.param({"saif_start": 1}, "without 'saif'; available sets: formal", id="no-saif"),
    pytest.param({"saif": "french", "saif_scope": "some"}, "generated, prompt, all", id="scope"),
    pytest.param({"saif": "french", "saif_scope": "all\n"}, "generated, prompt", id="scope-line"),
    pytest.param({"saif": "french", "saif_scope": {}}, "generated, prompt, all", id="scope-dict"),
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
    pytest.param({"saif": "french", "saif_decay": " 1"}, "saif_decay", id="space-decay"),
    pytest.param({"saif": "french", "saif_decay": "1\n"}, "saif_decay", id="newline-decay"),
    pytest.param({"saif": "french", "saif_decay": "1_0"}, "saif_decay", id="underscore-decay"),
    pytest.param({"saif": "french", "saif_decay": "\u0e55"}, "saif_decay", id="thai-decay"),
    pytest.param({"saif": "french", "saif_decay": "1,"}, "saif_decay", id="half-a-decay"),
    pytest.param({"saif": "french", "saif_decay": "0" * 999}, "saif_decay", id="endless-decay"),
    pytest.param({"saif": "french", "saif_decay": True}, "saif_decay", id="bool-decay"),
    pytest.param({"saif": "french", "saif_decay": np.float32(1)}, "float32", id="numpy-decay"),
    pytest.param({"saif": "french", "saif_start": np.int64(1)}, "int64", id="numpy-start"),
    pytest.param({"saif": np.array(["french"])}, "ndarray", id="numpy-array"),
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


LONG = "x" * 1_000_000


def deep(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bad",
    [
        *(LONG, f"french*{LONG}", "a+" * 500_000, {LONG: LONG}, deep(5000), 10**5000),
        LONG.encode(),
        "french + *" + "x" * 900,
    ],
    ids=["name", "strength", "terms", "dict", "deep", "int", "bytes", "end"],
)
@pytest.mark.parametrize("key", [*REQUEST_KEYS, "saif_" + LONG])
def test_no_value_is_long_in_a_message(key: str, bad: object) -> None:
    with pytest.raises(ValueError, match="saif") as refused:
        parse(**{"saif": "french", key: bad})
    assert len(str(refused.value)) < 400


class Name(enum.StrEnum):
    FRENCH = "french"


class Odd(str):
    def __str__(self) -> str:
        return "something else"


class Tokens(enum.IntEnum):
    TWO = 2


class Half(float):
    def __float__(self) -> float:
        return 7.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.str_("french"), "french"),
        (Name.FRENCH, "french"),
        (Odd("all"), "all"),
        (np.linspace(0, 1, 3)[1], 0.5),
        (Half(0.5), 0.5),
        (Tokens.TWO, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_made_plain(value: object, expected: object) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)
    msgspec.msgpack.encode(plain(value))


@pytest.mark.parametrize("value", [None, True, np.int64(1), np.float32(1), b"x", [Name.FRENCH]])
def test_what_is_no_string_and_no_number_stays(value: object) -> None:
    assert plain(value) is value


def test_subclasses_are_read_as_what_they_derive_from() -> None:
    asked = {"saif": Name.FRENCH, "saif_scope": Odd("all"), "saif_start": Tokens.TWO}
    request = parse_request(asked, available=AVAILABLE)
    assert request is not None and (request.sets, request.scope) == ((("french", 1.0),), "all")
    assert request.window == Window(prompt=True, start=2)
    assert type(request.sets[0][0]) is type(request.scope) is str
    assert type(request.window.start) is int


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
# Like what is meant: pieces of the grammar, in any order.
PIECES = st.lists(
    st.sampled_from([*AVAILABLE, *"+*-. ,\n1e\u0e55", "0.5", "nan", "inf", "prompt", "all"]),
    max_size=6,
).map("".join)
# The first draw makes tables of all characters, which may take seconds.
any_time = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SUBCLASSES = st.sampled_from([Name.FRENCH, np.str_("french"), np.float64(2), Tokens.TWO, Half(3)])


@any_time
@given(st.dictionaries(st.sampled_from(REQUEST_KEYS), JSON | PIECES | SUBCLASSES))
def test_whatever_is_given_is_read_as_plain_values_or_refused(asked: dict[str, Any]) -> None:
    try:
        request = parse_request(asked, available=AVAILABLE)
    except ValueError as error:
        assert len(str(error)) < 500
        return
    if request is None:
        assert not asked
        return
    for name, strength in request.sets:
        assert type(name) is str and name in AVAILABLE
        assert type(strength) is float and 0 < abs(strength) <= 10
    kinds = {"prompt": bool, "start": int, "stop": int, "omega": float, "power": float}
    assert {key: type(value) for key, value in request.window._asdict().items()} == kinds
    assert 0 <= request.window.start < request.window.stop <= OPEN_STOP
    assert 0 <= request.window.omega <= MAX_DECAY and 0 <= request.window.power <= MAX_DECAY
    sent = msgspec.msgpack.encode({key: plain(value) for key, value in asked.items()})
    assert parse_request(msgspec.msgpack.decode(sent), available=AVAILABLE) == request


@any_time
@given(st.dictionaries(JSON.filter(lambda key: not isinstance(key, list | dict)), JSON))
def test_keys_of_any_kind_are_ours_others_or_refused(extra_args: dict[Any, Any]) -> None:
    try:
        assert parse_request(extra_args, available=AVAILABLE) is None
    except ValueError as error:
        assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("value", "expected"),
    [("x" * 61, f"'{'x' * 60}'…"), (deep(5000), "a value of type list"), (2**64, "an integer of")],
    ids=["text", "deep", "integer"],
)
def test_a_quotation_is_short(value: object, expected: str) -> None:
    assert quoted(value).startswith(expected)


def test_the_window_must_begin_before_the_end() -> None:
    for window in (Window(start=3), Window(prompt=True, start=4)):
        check_reached(window, 4)
    with pytest.raises(ValueError, match=r"saif_start: .* \(max_tokens\), 4, got 4"):
        check_reached(Window(start=4), 4)
    with pytest.raises(ValueError, match="saif_start"):
        check_reached(Window(prompt=True, start=4), 4, prompt_shows=False)


def test_too_many_sets() -> None:
    with pytest.raises(ValueError, match="at most 2 sets"):
        parse_request({"saif": "french+formal+g-1.x"}, available=AVAILABLE, max_sets=2)


def test_strengths_go_further_when_configured() -> None:
    request = parse_request({"saif": "french*50"}, available=AVAILABLE, max_strength=100)
    assert request is not None and request.sets == (("french", 50.0),)


@pytest.mark.parametrize(
    "key",
    [
        *("siaf", "sai", "saiff", "SAIF", "Saif", "saif-scope", "saif_scop", "siaf_start"),
        *("saifscope", " saif", "xsaxif", "extra_saif", "vllm_xargs.saif", "body[saif]"),
    ],
)
def test_a_key_that_nearly_is_ours_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="available: saif, saif_scope") as refused:
        check_keys({key: "french"})
    assert f"unknown steering argument '{key}';" in str(refused.value)


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


def test_letters_are_swapped_left_out_or_too_many() -> None:
    near = ["".join(letters) for letters in itertools.permutations("saif")]
    near += ["aif", "sif", "saf", "sai", "xsaif", "saxif", "sxaixf", "saifxx"]
    for key in near:
        with pytest.raises(ValueError, match="unknown steering argument"):
            check_keys({key: 1, "saif": 1} if key != "saif" else {"Saif": 1})


def test_keys_need_not_be_strings() -> None:
    check_keys({1: "x", None: "y", (1, "a"): "z"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="unknown steering argument b'saif'"):
        check_keys({b"saif": "french"})  # type: ignore[dict-item]


def test_a_misspelt_key_beside_nothing_else_is_refused_too() -> None:
    with pytest.raises(ValueError, match="unknown steering argument 'siaf'"):
        parse(siaf="french")


DEFAULTS = {"french": {"saif_stop": 8}, "formal": {}, "table": {"saif_stop": 8, "saif_start": 0}}


def _window(**asked: object) -> Window:
    request = parse_request(asked, available=AVAILABLE)
    assert request is not None
    return with_defaults(request, DEFAULTS).window


def test_a_silent_request_has_its_sets_window() -> None:
    assert _window(saif="french*2") == Window(stop=8)
    assert _window(saif="formal") == Window()
    assert _window(saif="french + table") == Window(stop=8)  # the same, said in other words


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({"saif_scope": "generated"}, Window()),
        ({"saif_start": 2}, Window(start=2)),
        ({"saif_decay": 0}, Window()),
        ({"saif_scope": "all"}, Window(prompt=True)),
    ],
    ids=str,
)
def test_a_request_that_says_a_window_has_all_of_it(keys: dict[str, Any], window: Window) -> None:
    assert _window(saif="french + formal", **keys) == window


def test_sets_with_different_windows_need_a_request_that_says_one() -> None:
    with pytest.raises(ValueError, match=r"'french' saif_stop=8 and 'formal' saif_scope=generated"):
        _window(saif="french + formal")
