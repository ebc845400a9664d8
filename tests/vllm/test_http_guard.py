"""The guard of HTTP requests as an ASGI application calls it: no server, no engine."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from offered import catalog, vector
from vllm.v1.engine.exceptions import EngineDeadError

from saif_vllm import metrics
from saif_vllm.catalog import SetCatalog
from saif_vllm.http import ROUTES, SteeringGuard
from saif_vllm.request import parse

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/inference/v1/generate"
STREAM = [
    {"type": "http.response.start", "status": 200, "headers": []},
    *({"type": "http.response.body", "body": b"data: %d" % i, "more_body": True} for i in range(3)),
    {"type": "http.response.body", "body": b""},
]


class Client:
    """One request to a guarded application that reads all messages, and streams its answer."""

    def __init__(self, offered: SetCatalog) -> None:
        front_end = SimpleNamespace(saif=offered)
        engine = SimpleNamespace(input_processor=front_end)
        self.state = SimpleNamespace(engine_client=engine)
        self.seen: list[Any] = []
        self.sent: list[Any] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen = [await receive()]
        while self.seen[-1].get("more_body"):
            self.seen.append(await receive())
        self.seen.append(await receive())
        for message in STREAM:
            await send(message)

    def post(self, route: str, *messages: Any, **scope: Any) -> None:
        """Messages are chunks of a body, or messages as a server hands them over."""
        chunks = [
            {"type": "http.request", "body": m, "more_body": True} if isinstance(m, bytes) else m
            for m in messages
        ]
        if isinstance(messages[-1], bytes):
            chunks[-1]["more_body"] = False
        incoming = iter([*chunks, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(incoming)

        async def send(message: Any) -> None:
            self.sent.append(message)

        request = {"type": "http", "method": "POST", "path": route, "app": self, **scope}
        asyncio.run(SteeringGuard(self.app)(request, receive, send))

    @property
    def passed(self) -> bool:
        return bool(self.seen)

    @property
    def error(self) -> str:
        assert not self.passed
        start, body = self.sent
        assert start["status"] == 400
        assert dict(start["headers"])[b"content-length"] == b"%d" % len(body["body"])
        answer = json.loads(body["body"])["error"]
        assert (answer["type"], answer["code"]) == ("BadRequestError", 400)
        return str(answer["message"])


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
    [{"type": "websocket"}, {"method": "GET"}, {"path": "/v1/models"}, {"path": "/their/own"}],
    ids=str,
)
def test_what_is_not_ours_is_not_even_read(scope: dict[str, str], client: Client) -> None:
    pieces = [b'{"saif":', b'"french"}']
    client.post(CHAT, *pieces, **scope)
    assert [message.get("body") for message in client.seen] == [*pieces, None]


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
                asked = parse({"saif": "a"}, offered)
                assert asked is not None
                served.append(float(asked.sets[0][0].compiled[2].vector[0]))

    client = Late(offered)
    client.post(CHAT, b'{"vllm_xargs": {"saif": "a"}}')
    assert client.sent == STREAM and served == [1, 1]
    Late(offered).post(CHAT, b'{"vllm_xargs": {"saif": "a"}}')
    assert served[2:] == ([2, 2] if change == "replaced" else [])


XARGS = {"vllm_xargs": {"saif": "add_last"}}
SETS = "available sets: ablate_last, "
BAD: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "top_level": (CHAT, {"saif": "add_last"}, ('{"vllm_xargs": {"saif": "NAME*1.2"}}', SETS)),
    "top_level_option": (CHAT, {**XARGS, "saif_scope": "all"}, ("saif_scope: expected in", SETS)),
    "top_level_case": (CHAT, {"SAIF": "add_last"}, ("'SAIF'", "saif_scope")),
    "top_level_misspelt": (CHAT, {"siaf": "add_last"}, ("'siaf'", "saif_scope")),
    "extra_body": (CHAT, {"extra_body": XARGS}, ("got it in 'extra_body'", SETS)),
    "extra_args": (CHAT, {"extra_args": {"saif": "add_last"}}, ("'extra_args'", SETS)),
    "misspelt_place": (CHAT, {"vllm_xarg": {"saif": "add_last"}}, ("'vllm_xarg'", SETS)),
    "misspelt_key": (CHAT, {"vllm_xargs": {"siaf": "add_last"}}, ("'siaf'", "saif_scope")),
    "unknown_set": (CHAT, {"vllm_xargs": {"saif": "frensh"}}, ("'frensh'", SETS)),
    "not_a_string": (CHAT, {"vllm_xargs": {"saif": ["add_last"]}}, ("a string", SETS)),
    "nested": (CHAT, {"vllm_xargs": {"saif": {"sets": []}}}, ("a string", SETS)),
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
    "messages": (CHAT, {"messages": [{"role": "user", "content": '{"saif": 1}', "saif": 1}]}),
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
        b'{"vllm_xargs": {"saif": "add_last"}, "vllm_xargs": {"saif": "nothing"}}',
    ],
    ids=["nan", "utf-16", "escape", "long", "twice"],
)
def test_a_body_is_read_as_vllm_reads_it(body: bytes, client: Client) -> None:
    client.post(CHAT, body)
    assert SETS in client.error


@pytest.mark.parametrize(
    "body", [b"", b"saif", b'["saif"]', b"\xff", b"[" * 100_000, b'{"a":' * 100_000], ids=len
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
    monkeypatch.setattr(metrics, "_PATIENCE", 0.01)
    client.state.engine_client.collective_rpc = answer
    client.post("/metrics", b"", method="GET")
    assert client.sent == STREAM
    assert "tokens steered are as of an earlier time" in caplog.text
