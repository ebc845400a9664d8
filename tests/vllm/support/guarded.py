"""A client of the guard of HTTP requests, and an application behind it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend.http import SteeringGuard

STREAM = [
    {"type": "http.response.start", "status": 200, "headers": []},
    *({"type": "http.response.body", "body": b"data: %d" % i, "more_body": True} for i in range(3)),
    {"type": "http.response.body", "body": b""},
]


class Client:
    """One request to a guarded application that reads all messages, and streams its answer."""

    def __init__(self, offered: SetCatalog | None) -> None:
        front_end = SimpleNamespace(saif_catalog=offered)
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

    def post(self, route: str, *messages: Any, **scope: Any) -> Client:
        """Send chunks of a body, or messages as a server hands them over."""
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
        return self

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
