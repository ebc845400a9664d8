"""What the guard leaves unread of a body: nothing that would change its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offered import catalog

from saif_fast.request import REQUEST_KEYS
from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend import http

PLACES = ("vllm_xargs", "sampling_params", "extra_args", "extra_body", "messages", "metadata")
NAMES = st.sampled_from([*REQUEST_KEYS, *PLACES, "Saif", "tools", "input", 'a"saif', "saif\\"])
JSON = st.recursive(
    st.sampled_from(["add_last", "both*0", 'say "saif"', "all", "", 0, 1, 2.5, 1e300, None, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


def verdict(route: str, body: bytes, offered: SetCatalog) -> str | None:
    try:
        http.check_body(route, body, offered)
    except ValueError as error:
        return str(error)
    return None


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=300)
@given(
    route=st.sampled_from(["/v1/completions", "/inference/v1/generate", "/score"]), data=st.data()
)
def test_what_is_left_unread_changes_no_verdict(route: str, data: Any, offered: SetCatalog) -> None:
    fields = data.draw(st.dictionaries(NAMES, JSON, max_size=5))
    text = json.dumps(fields, indent=data.draw(st.sampled_from([None, 1])))
    body = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "_split_fields", lambda body: {})  # all of it is read
        expected = verdict(route, body, offered)
    assert verdict(route, body, offered) == expected


@pytest.mark.parametrize("name", ["vllm_xargs", "extra_body", "VLLM-xargs"])
def test_what_a_later_field_of_the_same_name_drops_is_seen(name: str, offered: SetCatalog) -> None:
    body = f'{{"{name}": {{"vllm_xargs": {{"saif": "both"}}}}, "n": 1, "{name}": {{}}}}'
    found = verdict("/v1/completions", body.encode(), offered)
    assert found == f"'{name}': expected once in an object, got it twice"


def test_what_names_us_nowhere_is_not_decoded(
    offered: SetCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(http, "_decode", lambda text: decoded.append(text) or {})
    texts = {"messages": [{"content": "it says 'saif'"}] * 9, "n": 1, "vllm_xargs": {"a": 1}}
    assert verdict("/v1/completions", json.dumps(texts).encode(), offered) is None
    assert not decoded
    verdict("/v1/completions", json.dumps({**texts, "vllm_xargs": {"saif": 1}}).encode(), offered)
    assert decoded == [b'{"saif": 1}']
