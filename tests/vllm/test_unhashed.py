"""A path in vLLM's configuration: where it arrives, and where it may not show."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, dataclass
from json import encoder
from typing import Any

import cloudpickle
import pytest

from saif_vllm.unhashed import UnhashedPath, path_of

A, B = UnhashedPath("/sets/a"), UnhashedPath("/sets/b")


def in_pure_python(value: object) -> str:
    encode = encoder.JSONEncoder(sort_keys=True)
    return "".join(encode.iterencode(value))  # which never takes the C encoder


@pytest.mark.parametrize("dumps", [json.dumps, in_pure_python])
def test_json_does_not_show_it(dumps: Any) -> None:
    a, b = (dumps({"saif": {"set_dir": path, "layers": [1]}}) for path in (A, B))
    assert a == b
    assert "/sets" not in a


@dataclass
class Arguments:
    additional_config: dict[str, Any]


def by_pickle(protocol: int) -> Any:
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    "sent",
    [
        *(pytest.param(by_pickle(n), id=f"pickle {n}") for n in range(pickle.HIGHEST_PROTOCOL + 1)),
        pytest.param(lambda value: cloudpickle.loads(cloudpickle.dumps(value)), id="cloudpickle"),
        copy.copy,
        copy.deepcopy,
        # As in LLM(**asdict(EngineArgs(...))).
        pytest.param(lambda value: asdict(Arguments({"saif": value}))["additional_config"]["saif"],
                     id="asdict"),
    ],
)  # fmt: skip
def test_it_arrives_whole(sent: Any) -> None:
    arrived = sent({"set_dir": A})
    assert path_of(arrived["set_dir"]) == "/sets/a"
    assert arrived == {"set_dir": A} != {"set_dir": B}


def test_it_is_equal_to_its_like_alone() -> None:
    assert A == UnhashedPath("/sets/a")
    assert not A != UnhashedPath("/sets/a")  # of its own, beside ==
    assert A != B
    assert not A == B
    assert str(A) != A != "/sets/a"
    assert len({A, B, UnhashedPath("/sets/a")}) == 2
    assert repr(A) == "UnhashedPath('/sets/a')"


def test_a_plain_string_is_its_own_path_and_the_rest_of_json_is_none() -> None:
    assert path_of("/sets") == "/sets"
    through_json = json.loads(json.dumps({"set_dir": A}))["set_dir"]
    assert path_of(through_json) == through_json != "/sets/a"
