"""The guard of HTTP requests as an ASGI application calls it: no server, no engine."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from guarded import STREAM, Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offered import catalog, vector
from vllm.v1.engine.exceptions import EngineDeadError

from saif_fast.request import REQUEST_KEYS
from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend import metrics
from saif_vllm.frontend.http import ROUTES
from saif_vllm.parsing import parse_extra_args

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/inference/v1/generate"
UNREAD = ("/v1/models", "/their/own", "/v1/audio/translations")
# Of what a body may have, ours among them.
PLACES = ("vllm_xargs", "sampling_params", "extra_args", "extra_body", "messages", "metadata")
NAMES = st.sampled_from([*REQUEST_KEYS, *PLACES, "input", "Saif", "siaf", "max_tokens", "echo", ""])


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


@pytest.fixture
def client(offered: SetCatalog) -> Client:
    return Client(offered)


STEERED = json.dumps({"messages": ["é" * 500], "vllm_xargs": {"saif": "add_last"}}).encode()


@pytest.mark.parametrize("size", [1, 7, 10_000], ids=lambda size: f"chunks of {size}")
def test_a_request_passes_unchanged_and_its_answer_as_it_comes(size: int, client: Client) -> None:
    client.post(CHAT, *(STEERED[i : i + size] for i in range(0, len(STEERED), size)))
    body, left = client.seen
    assert body == {"type": "http.request", "body": STEERED, "more_body": False}
    assert left == {"type": "http.disconnect"}  # vLLM listens for it while it generates
    assert client.sent == STREAM


def test_a_client_that_leaves_while_it_sends_is_seen_to_leave(client: Client) -> None:
    first = {"type": "http.request", "body": STEERED[:9], "more_body": True}
    client.post(CHAT, first, {"type": "http.disconnect"})
    assert client.seen[0] == {"type": "http.disconnect"}


@pytest.mark.parametrize(
    "scope",
    [{"type": "websocket"}, {"method": "GET"}, *({"path": path} for path in UNREAD)],
    ids=str,
)
def test_what_is_not_ours_is_not_even_read(scope: dict[str, str], client: Client) -> None:
    pieces = [b'{"saif":', b'"french"}']
    client.post(CHAT, *pieces, **scope)
    assert [message.get("body") for message in client.seen] == [*pieces, None]


@pytest.mark.parametrize(
    ("method", "route"), [("POST", CHAT), ("POST", "/pooling"), ("GET", "/metrics")]
)
def test_a_server_whose_engine_does_not_steer_is_left_alone(
    method: str, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    # It has a guard where another engine of its process steers.
    client = Client(None)
    pieces = [b'{"saif":', b'"french"}']
    client.post(route, *pieces, method=method)
    assert [message.get("body") for message in client.seen] == [*pieces, None]
    assert not caplog.records


def test_a_server_behind_a_prefix_is_guarded(client: Client) -> None:
    client.post("/behind" + CHAT, b'{"saif": "add_last"}', root_path="/behind")
    assert "vllm_xargs" in client.error


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_what_was_checked_is_what_is_served_however_late(change: str, tmp_path: Path) -> None:
    # vLLM makes a request of the engine out of it when its answer has begun, in a task of its own.
    file, offered = tmp_path / "a.safetensors", catalog(tmp_path)
    vector(1.0).save(file)
    served: list[float] = []

    class Late(Client):
        async def app(self, scope: Any, receive: Any, send: Any) -> None:
            vector(2.0).save(file) if change == "replaced" else file.unlink()
            await asyncio.create_task(self.make_requests())
            await super().app(scope, receive, send)

        async def make_requests(self) -> None:
            for _ in range(2):  # of a batch
                asked = parse_extra_args({"saif": "a"}, offered)
                assert asked is not None
                served.append(float(asked.sets[0][0].compiled[2].vector[0]))

    client = Late(offered)
    client.post(CHAT, b'{"vllm_xargs": {"saif": "a"}}')
    assert client.sent == STREAM and served == [1, 1]
    Late(offered).post(CHAT, b'{"vllm_xargs": {"saif": "a"}}')
    assert served[2:] == ([2, 2] if change == "replaced" else [])


ASKED = {"saif": "add_last"}
XARGS = {"vllm_xargs": ASKED}
SETS = "available sets: ablate_last, "
BAD: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "top_level": (CHAT, {"saif": "add_last"}, ('{"vllm_xargs": {"saif": "NAME*1.2"}}', SETS)),
    "top_level_option": (CHAT, {**XARGS, "saif_scope": "all"}, ("saif_scope: expected in", SETS)),
    "top_level_case": (CHAT, {"SAIF": "add_last"}, ("'SAIF'", "saif_scope")),
    "top_level_misspelt": (CHAT, {"siaf": "add_last"}, ("'siaf'", "saif_scope")),
    "extra_body": (CHAT, {"extra_body": XARGS}, ("got it in 'extra_body.vllm_xargs'", SETS)),
    "extra_body_alone": (CHAT, {"extra_body": {"saif": "both"}}, ("in 'extra_body'", SETS)),
    "extra_body_list": (CHAT, {"extra_body": [1, [XARGS]]}, ("'extra_body.vllm_xargs'", SETS)),
    "extra_body_twice": (CHAT, {"extra_body": {"extra_body": XARGS}}, ("body.extra_body.v", SETS)),
    "extra_body_text": (CHAT, {"extra_body": json.dumps(XARGS)}, ("text of 'extra_body'", SETS)),
    "place_text": (CHAT, {"vllm_xargs": json.dumps(ASKED)}, ("text of 'vllm_xargs'", SETS)),
    "place_list": (CHAT, {"vllm_xargs": [ASKED]}, ("got it in 'vllm_xargs'", SETS)),
    "place_twice": (CHAT, {"vllm_xargs": XARGS}, ("in 'vllm_xargs.vllm_xargs'", SETS)),
    "place_case": (CHAT, {"VLLM-Xargs": ASKED}, ("got it in 'VLLM-Xargs'", SETS)),
    "place_dotted": (CHAT, {"vllm_xargs.saif": "both"}, ("'vllm_xargs.saif'", "saif_scope")),
    "message": (CHAT, {"messages": [{"role": "user", "saif": 1}]}, ("in 'messages'", SETS)),
    "message_xargs": (CHAT, {"messages": [XARGS]}, ("'messages.vllm_xargs'", SETS)),
    "message_extra": (CHAT, {"messages": [{"extra_body": XARGS}]}, ("'messages.extra_body.", SETS)),
    "message_upper": (CHAT, {"messages": [{"VLLM_XARGS": {"Saif": 1}}]}, ("'messages.V", SETS)),
    "batch": ("/v1/chat/completions/batch", {"messages": [[XARGS]]}, ("'messages.vllm_x", SETS)),
    "anthropic": ("/v1/messages", {"messages": [XARGS]}, ("'messages.vllm_xargs'", SETS)),
    "input_item": ("/v1/responses", {"input": [XARGS]}, ("'input.vllm_xargs'", SETS)),
    "sampling_params": (CHAT, {"sampling_params": {"extra_args": ASKED}}, ("s.extra_args'", SETS)),
    "beside_the_place": (GENERATE, {"sampling_params": ASKED}, ("in 'sampling_params'", SETS)),
    "below_the_place": (
        GENERATE,
        {"sampling_params": {"extra_args": {**ASKED, "extra_args": ASKED}}},
        ("'sampling_params.extra_args.extra_args'", SETS),
    ),
    "extra_args": (CHAT, {"extra_args": {"saif": "add_last"}}, ("'extra_args'", SETS)),
    "misspelt_place": (CHAT, {"vllm_xarg": {"saif": "add_last"}}, ("'vllm_xarg'", SETS)),
    "misspelt_key": (CHAT, {"vllm_xargs": {"siaf": "add_last"}}, ("'siaf'", "saif_scope")),
    "unknown_set": (CHAT, {"vllm_xargs": {"saif": "frensh"}}, ("'frensh'", SETS)),
    "not_a_string": (CHAT, {"vllm_xargs": {"saif": ["add_last"]}}, ("a string", SETS)),
    "nested": (CHAT, {"vllm_xargs": {"saif": {"sets": []}}}, ("a string", SETS)),
    "no_strength": (CHAT, {"vllm_xargs": {"saif": "add_last*0"}}, ("other than 0",)),
    "never_reached": (
        CHAT,
        {"vllm_xargs": {**ASKED, "saif_start": 8}, "max_tokens": 4, "max_completion_tokens": 8},
        ("saif_start: ", "8, got 8"),
    ),
    "tokens_never_reached": (
        GENERATE,
        {"sampling_params": {"max_tokens": 1, "extra_args": {**ASKED, "saif_start": 1}}},
        ("saif_start: ", "1, got 1"),
    ),
    "beams": (CHAT, {**XARGS, "use_beam_search": True}, ("use_beam_search",)),
    "prompt_logprobs": (CHAT, {**XARGS, "prompt_logprobs": 0}, ("the unsteered model's",)),
    "echo_chat": (CHAT, {**XARGS, "echo": True, "messages": []}, ("the unsteered model's",)),
    "echo": (COMPLETIONS, {**XARGS, "echo": True, "logprobs": 0}, ("the unsteered model's",)),
    "nothing_shows": (
        COMPLETIONS,
        {"vllm_xargs": {"saif": "add_last", "saif_scope": "prompt"}},
        ("nothing but the first token",),
    ),
    "tokens_place": (GENERATE, XARGS, ('{"sampling_params": {"extra_args": {"saif"', SETS)),
    "tokens_logprobs": (
        GENERATE,
        {"sampling_params": {"prompt_logprobs": 1, "extra_args": {"saif": "add_last"}}},
        ("the unsteered model's",),
    ),
    "tokens_logprob_ids": (
        GENERATE,
        {"sampling_params": {"prompt_logprob_token_ids": [[1]], "extra_args": XARGS["vllm_xargs"]}},
        ("the unsteered model's",),
    ),
    **{
        route: (route, XARGS, (f"{route} cannot be steered", "/v1/chat/completions"))
        for route, place in ROUTES.items()
        if not place
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_what_is_available(name: str, client: Client) -> None:
    route, body, parts = BAD[name]
    client.post(route, json.dumps(body).encode())
    for part in parts:
        assert part in client.error


GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "echo_without_logprobs": (COMPLETIONS, {**XARGS, "prompt": "", "echo": True}),
    "scope_all": (
        COMPLETIONS,
        {"vllm_xargs": {"saif": "add_last", "saif_scope": "all"}, "prompt_logprobs": 1},
    ),
    "own_field": (CHAT, {"metadata": {"saif": "a note", "vllm_xargs": {"saif": 1}}}),
    "schema": (CHAT, {"response_format": {"json_schema": {"schema": {"saif": {}}}}}),
    "messages": (CHAT, {"messages": [{"role": "user", "content": '{"saif": 1}', "name": "saif"}]}),
    "parts": (CHAT, {"messages": [{"role": "user", "content": [{"type": "x", "saif": 1}]}]}),
    "tools": (CHAT, {**XARGS, "tools": [{"function": {"parameters": {"saif": {}}, "saif": 1}}]}),
    "tool_choice": (CHAT, {"tool_choice": {"type": "function", "function": {"name": "saif"}}}),
    "documents": (CHAT, {"documents": [{"saif": "king"}]}),
    "texts": (COMPLETIONS, {"prompt": ["saif", '{"vllm_xargs": {"saif": "both"}}']}),
    "inputs": ("/v1/responses", {"input": ["saif", {"content": "saif"}]}),
    "reached": (CHAT, {"vllm_xargs": {**ASKED, "saif_start": 3}, "max_tokens": 4}),
    "max_tokens_0": (COMPLETIONS, {**XARGS, "max_tokens": 0}),  # is vLLM's to judge
    "others": (CHAT, {"vllm_xargs": {"other": 1}, "use_beam_search": True, "prompt_logprobs": 1}),
    "null": (CHAT, {"vllm_xargs": None}),
    "list": (CHAT, {"vllm_xargs": [1]}),  # vLLM says what is wrong with it
    "tokens": (GENERATE, {"sampling_params": {"extra_args": {"saif": "add_last"}}}),
    "no_tokens": (GENERATE, {"sampling_params": None}),
    "unsteered_scores": ("/score", {"vllm_xargs": {"other": 1}}),
}


@pytest.mark.parametrize("name", GOOD)
def test_all_else_passes(name: str, client: Client) -> None:
    route, body = GOOD[name]
    client.post(route, json.dumps(body).encode())
    assert client.passed, client.error


@pytest.mark.parametrize(
    "body",
    [
        b'{"saif": "add_last", "temperature": NaN}',
        '{"saif": "add_last"}'.encode("utf-16"),
        b'{"\\u0073aif": "add_last"}',
        b'{"seed": 123456789012345678901234567890, "saif": "add_last"}',
    ],
    ids=["nan", "utf-16", "escape", "long"],
)
def test_a_body_is_read_as_vllm_reads_it(body: bytes, client: Client) -> None:
    client.post(CHAT, body)
    assert SETS in client.error


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"vllm_xargs": {"saif": "add_last"}, "vllm_xargs": {"saif": "both"}}', "vllm_xargs"),
        (b'{"vllm_xargs": {"saif": "add_last"}, "vllm_xargs": {}}', "vllm_xargs"),
        (b'{"vllm_xargs": {"saif": "add_last", "saif": "both"}}', "saif"),
        (b'{"vllm_xargs": {"saif": "both", "saif_stop": 1, "saif_stop": 9}}', "saif_stop"),
        (b'{"vllm_xargs": {"saif": "both", "s\\u0061if": "add_last"}}', "saif"),
    ],
)
def test_what_matters_is_given_once(body: bytes, name: str, client: Client) -> None:
    # vLLM takes the last.
    assert f"'{name}': expected once in an object, got it twice" in client.post(CHAT, body).error


@pytest.mark.parametrize(
    ("scope", "where"),
    [
        ({"headers": [(b"accept", b"*/*"), (b"saif", b"both")]}, "the header 'saif'"),
        ({"headers": [(b"X-Saif-Scope", b"all")]}, "the header 'x-saif-scope'"),
        ({"query_string": b"x=1&saif=both"}, "the query's 'saif'"),
        ({"query_string": b"saif_scope"}, "the query's 'saif_scope'"),
        ({"query_string": b"%73aif="}, "the query's 'saif'"),
        ({"query_string": b'vllm_xargs={"saif":"both"}'}, "the query's 'vllm_xargs'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("route", [CHAT, GENERATE, "/v1/score", "/v1/audio/transcriptions"])
def test_nothing_is_asked_for_outside_of_the_body(
    route: str, scope: dict[str, Any], where: str, client: Client
) -> None:
    error = client.post(route, b"{}", **scope).error
    assert (
        "cannot be steered" in error if route == "/v1/score" else where in error and SETS in error
    )


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"saif":' * 100_000], ids=len)
def test_what_is_too_deep_to_be_read_is_refused(body: bytes, client: Client) -> None:
    assert "levels of nesting" in client.post(CHAT, body).error


def test_headers_and_parameters_of_others_pass(client: Client) -> None:
    headers = [(b"host", b"saif.example"), (b"x-model", b"saif")]
    assert client.post(CHAT, b"{}", headers=headers, query_string=b"v=saif&vllm_xargs=1").passed


def nested(name: str | None, depth: int, last: Any) -> bytes:
    """JSON, which Python's encoder would not write so deep."""
    before, behind = (b"[", b"]") if name is None else (b'{"%s":' % name.encode(), b"}")
    return before * depth + json.dumps(last).encode() + behind * depth


@pytest.mark.parametrize("depth", [10, 400, 900, 100_000])
@pytest.mark.parametrize("name", [None, "other", "vllm_xargs", "extra_body", "saif"])
@pytest.mark.parametrize("place", ["messages", "vllm_xargs", "extra_body", "input"])
def test_a_body_may_be_deep(place: str, name: str | None, depth: int, client: Client) -> None:
    client.post(CHAT, b'{"%s": %s}' % (place.encode(), nested(name, depth, ASKED)))
    assert client.passed or len(client.error) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(sorted(ROUTES)), body=st.dictionaries(NAMES, JSON))
def test_any_body_passes_or_is_refused(
    route: str, body: dict[str, Any], offered: SetCatalog
) -> None:
    client = Client(offered).post(route, json.dumps(body).encode())
    if not client.passed:
        assert len(client.error) < 1500
        return
    # Then it is steered as it was read, or names none of our keys where we say that we look.
    keys = body.keys() - {"metadata"}
    assert keys.isdisjoint(REQUEST_KEYS)
    place: Any = body
    for name in ROUTES[route]:
        place = place.get(name) if isinstance(place, dict) else None
    for value in (body[key] for key in keys if isinstance(body[key], dict)):
        assert value is place or value.keys().isdisjoint(REQUEST_KEYS)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"saif", b'["saif"]', b"\xff", b"[" * 900, b'{"saif":' * 900, b'{"n": 1, "n": 2}'),
        *(b'{"n": 1e999, "vllm_xargs": {"a": 1e999}}', b'{"vllm_xargs": {"\\ud800": "\\ud800"}}'),
    ],
    ids=len,
)
def test_what_is_no_json_object_is_left_to_vllm(body: bytes, client: Client) -> None:
    client.post(CHAT, body)
    assert client.seen[0]["body"] == body


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_an_error_of_the_file_system_is_a_400(
    number: int, offered: SetCatalog, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "stat", failing)
    client.post(CHAT, json.dumps(XARGS).encode())
    assert client.error == f"set 'add_last': {os.strerror(number)}"


async def _dead(method: str) -> Any:
    raise EngineDeadError


async def _missed(method: str) -> Any:
    raise RuntimeError("3 tokens that should have been steered were not")


async def _hanging(method: str) -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("answer", [_dead, _missed, _hanging])
def test_metrics_are_served_whatever_the_engine_does(
    answer: Any, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "_TIMEOUT", 0.01)
    client.state.engine_client.collective_rpc = answer
    client.post("/metrics", b"", method="GET")
    assert client.sent == STREAM
    assert "tokens steered are as of an earlier time" in caplog.text
