"""Requests over HTTP: what would be served unsteered, or fail in mid-stream, is refused with 400.

vLLM ignores fields that it does not know, some of its routes drop ``vllm_xargs``, and a streaming
request is validated when the status 200 has been sent. So requests are read here before vLLM does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from saif_fast.names import listed
from saif_fast.request import REQUEST_KEYS, check_keys, quoted
from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend.metrics import count_refusal, read_devices
from saif_vllm.parsing import PROMPT_LOGPROBS, check_scope, parse

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_XARGS = ("vllm_xargs",)
_EXTRA_ARGS = ("sampling_params", "extra_args")
# Every route of vLLM that takes JSON and runs the model, and where in its body the steering keys
# are passed on to the engine: nowhere, for an empty path. Websockets are not here; other routes
# generate nothing.
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
# Of these, which take forms, only what is outside of the body is looked at.
_FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
# The one field of a body that is the client's own.
_FREE = "metadata"
# What clients and vLLM call an object of further parameters, wherever they put it.
_CONTAINERS = frozenset({"vllm_xargs", "extra_args", "extra_body", "sampling_params"})
_MESSAGES = ("messages", "input")  # fields whose objects have fields of their own
_NESTING = (dict, list, str)
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_DEFAULT_MAX_TOKENS = {"/v1/completions": 16}  # vLLM's, where the context is not the limit
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SteeringGuard:
    """Pure ASGI middleware. A request that passes reaches vLLM as it came, its response as it goes.

    Args:
        app: the application, with its engine as ``state.engine_client``. Every one of a process has
            a guard as soon as one of their engines steers; for the others' it does nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else None
        route = _route(scope) if method else ""
        scraped = method == "GET" and route in ("/metrics", "/metrics/")
        guarded = method == "POST" and (route in ROUTES or route in _FORMS)
        engine = scope["app"].state.engine_client if scraped or guarded else None
        catalog = None if engine is None else engine.input_processor.saif
        if scraped and catalog is not None:
            await read_devices(engine)
        if not guarded or catalog is None:
            await self.app(scope, receive, send)
            return
        # What is found here is what vLLM will be served with, which begins its answer first.
        with catalog.one_request():
            try:
                check_outside(route, scope, catalog)
                if route in ROUTES:
                    body, receive = await _read(receive)
                    check_body(route, body, catalog)
            except ValueError as error:
                count_refusal()
                await _answer_400(send, str(error))
                return
            await self.app(scope, receive, send)


def _route(scope: Mapping[str, Any]) -> str:
    """The path behind what the server is mounted at."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path  # type: ignore[no-any-return]


def check_outside(route: str, scope: Mapping[str, Any], catalog: SetCatalog) -> None:
    """Raise ValueError for a header or a query parameter that has the name of a key of ours."""
    for header, _ in scope.get("headers", ()):
        name = header.decode("latin-1").lower()
        if _is_ours(name.removeprefix("x-")):
            raise ValueError(_misplaced("saif", f"the header {quoted(name)}", route, catalog))
    query = scope.get("query_string", b"").decode("latin-1")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if _is_ours(name) or (_is_container(name) and "saif" in value):
            raise ValueError(_misplaced("saif", f"the query's {quoted(name)}", route, catalog))


def check_body(route: str, body: bytes, catalog: SetCatalog) -> None:
    """Check a request's body before vLLM sees it.

    Args:
        route: a key of :data:`ROUTES`.
        body: JSON; what is not is vLLM's to refuse.
        catalog: of the engine.

    Raises:
        ValueError: steering that vLLM would drop or that cannot be done; names what is available.
    """
    place = ROUTES[route]
    fields, named = _read_fields(body)
    check_keys(fields)
    extra_args: Any = fields if place else None
    for name in place:
        extra_args = extra_args.get(name) if isinstance(extra_args, dict) else None
    if named:
        for key, where in _misplaced_keys(fields, extra_args):
            raise ValueError(_misplaced(key, where, route, catalog))
    asked = parse(extra_args, catalog) if isinstance(extra_args, dict) else None
    if asked is None:
        return
    if fields.get("use_beam_search"):
        raise ValueError(
            "use_beam_search: expected false beside saif, got true: vLLM does not steer its beams"
        )
    given = fields["sampling_params"] if place == _EXTRA_ARGS else fields
    max_tokens = _max_tokens(given) or _DEFAULT_MAX_TOKENS.get(route, catalog.max_tokens)
    check_scope(asked, _wants_prompt_logprobs(given), max_tokens)


def _misplaced_keys(body: Mapping[str, Any], extra_args: object) -> Iterator[tuple[str, str]]:
    """Keys of ours in a body, but for those in ``extra_args``, and where they are.

    They are looked for in the body, in its fields that are objects, in its messages and theirs, and
    in what has the name of a container in any of these. All else is text or the client's own:
    tools, schemas, contents.
    """
    # A path, what is there, and whether its fields that are objects are looked into. No recursion,
    # since a body may be deep.
    todo: list[tuple[str, Any, bool]] = [("", body, True)]
    while todo:
        path, value, has_fields = todo.pop()
        if isinstance(value, list):
            todo += ((path, item, has_fields) for item in value)
        elif isinstance(value, str) and not has_fields and "saif" in value:
            yield "saif", f"the text of {quoted(path)}"
        if not isinstance(value, dict):
            continue
        if value is not extra_args:
            for name in filter(_is_ours, value):
                key = name if name in REQUEST_KEYS else "saif"
                yield key, quoted(path) if path else "the body itself"
        for name, inner in value.items():
            if not isinstance(inner, _NESTING):
                continue
            an_object = has_fields and name != _FREE and isinstance(inner, dict)
            messages = value is body and name in _MESSAGES and isinstance(inner, list)
            if an_object or messages or _is_container(name):
                todo.append((f"{path}.{name}"[:100] if path else name, inner, messages))


def _is_ours(name: str) -> bool:
    return name.lower().startswith("saif")


def _is_container(name: str) -> bool:
    return name.lower().replace("-", "_") in _CONTAINERS


def _misplaced(key: str, where: str, route: str, catalog: SetCatalog) -> str:
    place = ROUTES.get(route, _XARGS)
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


def _wants_prompt_logprobs(given: Mapping[str, Any]) -> bool:
    if any(given.get(name) is not None for name in PROMPT_LOGPROBS):
        return True
    # In a chat vLLM takes top_logprobs, which is 0 unless given, for both.
    return bool(given.get("echo")) and ("messages" in given or given.get("logprobs") is not None)


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    """The largest that is given: which of the names counts depends on the route."""
    limits = [given[name] for name in _MAX_TOKENS if isinstance(given.get(name), int)]
    # What is below is vLLM's to judge: 0 with echo stands for a prompt that is scored.
    return max((limit for limit in limits if limit >= 1), default=None)


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


def _read_fields(body: bytes) -> tuple[dict[str, Any], bool]:
    """The body's fields as vLLM reads them, and whether any key in it may be ours.

    Lists and strings that name none of ours are left as bytes: messages, prompts and images are
    long and none of our business.

    Raises:
        ValueError: as :func:`_decode`.
    """
    named = _times_named(body)
    fields = _skim(body)
    within = {name: _times_named(raw) if named else 0 for name, raw in fields.items()}
    # Fewer are left where a field was given twice, which keeps the last; and none of what msgspec
    # does not read (NaN, UTF-16) and vLLM does. A name may also be spelt with escapes.
    names = "".join(f'"{name}' for name in fields).encode()
    if not fields or named != _times_named(names) + sum(within.values()):
        found = _decode(body)
        return (found if isinstance(found, dict) else {}), True
    return {
        name: _decode(bytes(raw)) if within[name] else _glance(raw) for name, raw in fields.items()
    }, named > 0


def _skim(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object; none where msgspec does not read it."""
    try:
        return _fields_decoder.decode(body)
    except (ValueError, RecursionError):
        return {}


def _glance(raw: msgspec.Raw) -> Any:
    """The value of a field, which names none of our keys; lists and strings as they are."""
    if memoryview(raw)[0] in b'["':
        return raw
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # such as 1e999
        return _decode(bytes(raw))


def _times_named(text: bytes | msgspec.Raw) -> int:
    """How often a string in ``text`` begins as our keys do."""
    return bytes(text).lower().count(b'"saif')


def _decode(text: bytes) -> Any:
    """JSON as vLLM reads it; None where it will not.

    Raises:
        ValueError: it is too deep, or names one of our keys, or what holds them, twice, of which
            vLLM takes the last.
    """
    twice: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            times = Counter(name for name, _ in pairs if _is_ours(name) or _is_container(name))
            twice.extend(name for name, n in times.items() if n > 1)
        return found

    try:
        value = json.loads(text, object_pairs_hook=collect)
    except RecursionError:
        # vLLM would say so, too; but it must not be able to read what we could not.
        raise ValueError(
            "body: expected some hundred levels of nesting at most, got more"
        ) from None
    except ValueError:
        return None
    if twice:
        raise ValueError(f"{quoted(twice[0])}: expected once in an object, got it twice")
    return value


async def _answer_400(send: Send, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
