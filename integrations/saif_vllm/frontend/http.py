"""Guard of requests over HTTP: what would be served unsteered, or fail in mid-stream, gets a 400.

vLLM ignores fields that it does not know, some of its routes drop ``vllm_xargs``, and it validates
a streaming request after it has sent the status 200. So the guard reads requests before vLLM does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from saif_fast.names import listed
from saif_fast.request import REQUEST_KEYS, check_keys
from saif_fast.values import quoted
from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend.metrics import count_refusal, update_token_metrics
from saif_vllm.parsing import PROMPT_LOGPROBS, check_scope, parse_extra_args

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_XARGS = ("vllm_xargs",)
_EXTRA_ARGS = ("sampling_params", "extra_args")
# Maps each route that takes JSON and runs the model to the path of the body field that vLLM
# forwards as `extra_args`. `()`: vLLM forwards nothing, so the route cannot be steered. Websockets
# are not here. Other routes generate nothing.
ROUTES: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": _XARGS,
    "/v1/chat/completions/batch": _XARGS,
    "/v1/completions": _XARGS,
    "/v1/responses": _XARGS,
    "/v1/messages": _XARGS,
    "/invocations": _XARGS,
    # These return a body for /inference/v1/generate.
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
# Routes that take forms: only what is outside of the body is checked.
_FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
# Free-form by OpenAI's API, so a `saif` key inside it is not a mistake.
_FREE = "metadata"
# Names that clients and vLLM use for an object of further parameters, wherever it is.
_CONTAINERS = frozenset({"vllm_xargs", "extra_args", "extra_body", "sampling_params"})
_MESSAGES = ("messages", "input")  # fields whose objects have fields of their own
_NESTING = (dict, list, str)
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_DEFAULT_MAX_TOKENS = {"/v1/completions": 16}  # vLLM's; on other routes the context is the limit
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SteeringGuard:
    """Pure ASGI middleware. Valid requests and all responses pass through unchanged.

    Args:
        app: the application, with its engine as ``state.engine_client``. As soon as one engine of a
            process steers, all applications of that process get a guard. It does nothing for
            engines that do not steer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else None
        route = _route(scope) if method else ""
        scraped = method == "GET" and route in ("/metrics", "/metrics/")
        guarded = method == "POST" and (route in ROUTES or route in _FORMS)
        engine = scope["app"].state.engine_client if scraped or guarded else None
        catalog = None if engine is None else engine.input_processor.saif_catalog
        if scraped and catalog is not None:
            await update_token_metrics(engine)
        if not guarded or catalog is None:
            await self.app(scope, receive, send)
            return
        # The sets found here are those that vLLM's own validation gets later, after its answer
        # began.
        with catalog.one_request():
            try:
                check_outside(route, scope, catalog)
                if route in ROUTES:
                    body, receive = await _read_body(receive)
                    check_body(route, body, catalog)
            except ValueError as error:
                count_refusal()
                await _answer_400(send, str(error))
                return
            await self.app(scope, receive, send)


def _route(scope: Mapping[str, Any]) -> str:
    """Return the path below the one that the server is mounted at."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path  # type: ignore[no-any-return]


def check_outside(route: str, scope: Mapping[str, Any], catalog: SetCatalog) -> None:
    """Raise ValueError for a header or a query parameter that is named like one of our keys."""
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
        body: JSON. vLLM rejects anything else.
        catalog: of the engine.

    Raises:
        ValueError: the body asks for steering that vLLM would drop, or that is not available; the
            message names what is.
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
    asked = parse_extra_args(extra_args, catalog) if isinstance(extra_args, dict) else None
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
    """Yield each key of ours that is outside of ``extra_args``, and where it is.

    Searches the body, the objects in it, its messages, the objects in those, and any container
    (:data:`_CONTAINERS`) in one of these. Everything else is text, or the client's own: tools,
    schemas, contents.
    """
    # Path, value, and whether to search the objects in it. A loop, because a body may be deep.
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
    # In a chat vLLM uses top_logprobs for prompt and generation, and its default is 0, not None.
    return bool(given.get("echo")) and ("messages" in given or given.get("logprobs") is not None)


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    """Return the largest limit that is given: which name counts depends on the route."""
    limits = [given[name] for name in _MAX_TOKENS if isinstance(given.get(name), int)]
    # Smaller numbers are vLLM's to judge: 0 with echo scores the prompt.
    return max((limit for limit in limits if limit >= 1), default=None)


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """Return the whole body, and a ``receive`` that returns it once more, in one piece."""
    chunks: list[bytes] = []
    message: Message = {"more_body": True}
    while message.get("more_body", False):
        message = await receive()
        chunks.append(message.get("body", b""))
    body = b"".join(chunks)
    if message["type"] == "http.request":
        message = {"type": "http.request", "body": body, "more_body": False}
    pending = [message]  # If the client disconnected, replay that message so that vLLM notices.

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return body, replay


def _read_fields(body: bytes) -> tuple[dict[str, Any], bool]:
    """Return the body's fields as vLLM reads them, and whether any key in the body may be ours.

    Lists and strings without such a key stay undecoded: messages, prompts and images are long.

    Raises:
        ValueError: as :func:`_decode`.
    """
    named = _count_our_names(body)
    fields = _split_fields(body)
    within = {name: _count_our_names(raw) if named else 0 for name, raw in fields.items()}
    # The counts differ if a field was given twice, because the last one wins. vLLM parses with
    # `json`, which also accepts NaN and UTF-16; msgspec does not, and then returns no fields. A
    # name may also be written with escapes. Fall back to `json` for all of these.
    names = "".join(f'"{name}' for name in fields).encode()
    if not fields or named != _count_our_names(names) + sum(within.values()):
        found = _decode(body)
        return (found if isinstance(found, dict) else {}), True
    return {
        name: _decode(bytes(raw)) if within[name] else _decode_unless_long(raw)
        for name, raw in fields.items()
    }, named > 0


def _split_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the undecoded fields of a JSON object; none if msgspec cannot read it."""
    try:
        return _fields_decoder.decode(body)
    except (ValueError, RecursionError):
        return {}


def _decode_unless_long(raw: msgspec.Raw) -> Any:
    """Decode a field that names none of our keys; a list or a string stays undecoded."""
    if memoryview(raw)[0] in b'["':
        return raw
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # such as 1e999
        return _decode(bytes(raw))


def _count_our_names(text: bytes | msgspec.Raw) -> int:
    """Count the strings in ``text`` that begin like our keys."""
    return bytes(text).lower().count(b'"saif')


def _decode(text: bytes) -> Any:
    """Decode JSON as vLLM does; None: vLLM will reject it.

    Raises:
        ValueError: it is nested too deeply, or an object has one of our keys, or a container of
            them, twice. vLLM would use the last one.
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
        # vLLM would fail too, but it must not be able to read what we cannot.
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
