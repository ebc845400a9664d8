"""Requests over HTTP: what would be served unsteered, or fail in mid-stream, is refused with 400.

vLLM ignores fields that it does not know, some of its routes drop ``vllm_xargs``, and a streaming
request is validated when the status 200 has been sent. So bodies are read here before vLLM does.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

import msgspec

from saif_fast.names import listed
from saif_fast.request import REQUEST_KEYS, check_keys
from saif_vllm.catalog import SetCatalog
from saif_vllm.metrics import count_refusal, read_devices
from saif_vllm.request import parse
from saif_vllm.scope import PROMPT_LOGPROBS, check_scope

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_XARGS = ("vllm_xargs",)
_EXTRA_ARGS = ("sampling_params", "extra_args")
# Every route of vLLM that takes JSON and runs the model, and where in its body the steering keys
# are passed on to the engine: nowhere, for an empty path. Audio (a form) and websockets are not
# here; other routes generate nothing.
ROUTES: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": _XARGS,
    "/v1/chat/completions/batch": _XARGS,
    "/v1/completions": _XARGS,
    "/v1/responses": _XARGS,
    "/v1/messages": _XARGS,
    "/invocations": _XARGS,
    # These answer with the body for /inference/v1/generate.
    "/v1/chat/completions/render": _XARGS,
    "/v1/completions/render": _XARGS,
    "/v1/responses/render": _XARGS,
    "/v1/messages/render": _XARGS,
    "/inference/v1/generate": _EXTRA_ARGS,
    "/cohere/v2/chat": (),
    "/cohere/v2/chat/render": (),
    "/generative_scoring": (),
    "/v1/systemone": (),
    "/pooling": (),
    "/classify": (),
    "/v1/embeddings": (),
    "/v2/embed": (),
    "/score": (),
    "/v1/score": (),
    "/rerank": (),
    "/v1/rerank": (),
    "/v2/rerank": (),
}
# The one field of a body that is the client's own.
_FREE = "metadata"
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SteeringGuard:
    """Pure ASGI middleware. A request that passes reaches vLLM as it came, its response as it goes.

    Args:
        app: the application, whose ``state.engine_client`` is an engine that steers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else None
        route = scope["path"].removeprefix(scope.get("root_path", "")) if method else None
        if method == "GET" and route in ("/metrics", "/metrics/"):
            await read_devices(scope["app"].state.engine_client)
        if method != "POST" or route not in ROUTES:
            await self.app(scope, receive, send)
            return
        body, replay = await _read(receive)
        catalog = scope["app"].state.engine_client.input_processor.saif
        # What is found here is what vLLM will be served with, which begins its answer first.
        with catalog.one_request():
            try:
                check_body(route, _fields(body), catalog)
            except ValueError as error:
                count_refusal()
                await _answer_400(send, str(error))
                return
            await self.app(scope, replay, send)


def check_body(
    route: str,
    fields: Mapping[str, Any],
    catalog: SetCatalog,
) -> None:
    """Check a request's body before vLLM sees it.

    Args:
        route: a key of :data:`ROUTES`.
        fields: of the body, as :func:`_fields` returns them.
        catalog: of the engine.

    Raises:
        ValueError: steering that vLLM would drop or that cannot be done; names what is available.
    """
    place = ROUTES[route]
    check_keys(fields)
    for name, value in fields.items():
        if name in REQUEST_KEYS:
            raise ValueError(_misplaced(name, "the body itself", route, catalog))
        if name != _FREE and name not in place and _asks(value):
            raise ValueError(_misplaced("saif", repr(name), route, catalog))
    extra_args: Any = fields
    for name in place:
        extra_args = extra_args.get(name) if isinstance(extra_args, dict) else None
    asked = parse(extra_args, catalog) if place and isinstance(extra_args, dict) else None
    if asked is None:
        return
    if fields.get("use_beam_search"):
        raise ValueError(
            "use_beam_search: expected false beside saif, got true: vLLM does not steer its beams"
        )
    check_scope(asked, _wants_prompt_logprobs(route, fields))


def _asks(value: object) -> bool:
    """Whether a value has a key of ours, or one inside of what vLLM calls it."""
    if not isinstance(value, dict):
        return False
    inner = (value.get(name) for name in ("vllm_xargs", "extra_args"))
    return not value.keys().isdisjoint(REQUEST_KEYS) or any(map(_asks, inner))


def _misplaced(key: str, where: str, route: str, catalog: SetCatalog) -> str:
    place = ROUTES[route]
    if not place:
        steered = ", ".join(path for path, kept in ROUTES.items() if kept)
        return f"{key}: {route} cannot be steered, vLLM drops it there; available: {steered}"
    example: dict[str, Any] = {"saif": "NAME*1.2"}
    for name in reversed(place):
        example = {name: example}
    return (
        f"{key}: expected in {'.'.join(place)}, as in {json.dumps(example)}, got it in {where}; "
        f"available sets: {listed(catalog)}"
    )


def _wants_prompt_logprobs(route: str, fields: Mapping[str, Any]) -> bool:
    given = fields["sampling_params"] if ROUTES[route] == _EXTRA_ARGS else fields
    if any(given.get(name) is not None for name in PROMPT_LOGPROBS):
        return True
    # In a chat vLLM takes top_logprobs, which is 0 unless given, for both.
    return bool(fields.get("echo")) and ("messages" in fields or fields.get("logprobs") is not None)


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """The whole body, and a ``receive`` that gives it once more, in one piece."""
    chunks: list[bytes] = []
    message: Message = {"more_body": True}
    while message.get("more_body", False):
        message = await receive()
        chunks.append(message.get("body", b""))
    body = b"".join(chunks)
    if message["type"] == "http.request":
        message = {"type": "http.request", "body": body, "more_body": False}
    pending = [message]  # or the client has left, which vLLM sees too

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return body, replay


def _fields(body: bytes) -> dict[str, Any]:
    """The body's fields, lists and strings left as bytes; empty where it is not a JSON object.

    Messages, prompts and images are long and none of our business. What is not JSON is vLLM's to
    refuse.
    """
    try:
        return {
            name: raw if memoryview(raw)[0] in b'["' else msgspec.json.decode(raw)
            for name, raw in _fields_decoder.decode(body).items()
        }
    except (ValueError, RecursionError):
        return _fields_as_vllm_reads_them(body)


def _fields_as_vllm_reads_them(body: bytes) -> dict[str, Any]:
    # Python's own parser also takes NaN, UTF-16 and more, which are rare.
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


async def _answer_400(send: Send, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
