"""A headless Chromium that is driven over its debugging pipe: no driver or package is needed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 120.0


class Browser:
    """A page of a browser, with what its console and its network said."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes
        self._received, self._last = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and keep the events that come before its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]  # type: ignore[no-any-return]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            data = os.read(self._reads, 1 << 20)
            assert data, "the browser has ended"
            self._received += data
        line, _, self._received = self._received.partition(b"\0")
        return json.loads(line)  # type: ignore[no-any-return]

    def open(self, file: Path, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Open a file in a view of this size; below 600 pixels it is a phone's."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)
        self.call("Page.navigate", url=file.as_uri())
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, after waiting for a promise."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"not within {SECONDS} s: {expression}"
            time.sleep(0.05)

    def draw_all(self) -> int:
        """Scroll over the whole page, wait for all its figures, and return how many there are."""
        self.evaluate("document.querySelectorAll('.figure').forEach(f => f.scrollIntoView())")
        self.evaluate(
            "(async () => { for (const f of document.querySelectorAll('.figure')) {"
            " f.scrollIntoView({behavior: 'instant'});"
            " while (!('drawn' in f.dataset)) await new Promise(r => setTimeout(r, 20)); } })()"
        )
        self.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        return int(self.evaluate("document.querySelectorAll('.figure[data-drawn]').length"))

    def complaints(self) -> list[str]:
        """List errors and warnings of the console, and uncaught exceptions."""
        found = []
        for event in self.events:
            shown = json.dumps(event.get("params"))
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(shown)
                case "Runtime.consoleAPICalled" if event["params"]["type"] in ("error", "warning"):
                    found.append(shown)
                case "Log.entryAdded" if event["params"]["entry"]["level"] in ("error", "warning"):
                    found.append(shown)
        return found

    def requests(self) -> list[str]:
        """List the addresses that were asked for, apart from data in the page itself."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def screenshot(self, file: Path, *, top: int | None = None, height: int = 2000) -> None:
        """Write the page as PNG: what is in view, or ``height`` pixels from ``top`` on."""
        options: dict[str, Any] = {}
        if top is not None:
            width = self.evaluate("document.documentElement.clientWidth")
            clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
            options = {"clip": clip, "captureBeyondViewport": True}
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))


@contextmanager
def browsing(executable: str, home: Path) -> Iterator[Browser]:
    """Start a browser with its profile in ``home``, and end it."""
    from_parent, to_child = os.pipe()
    from_child, to_parent = os.pipe()
    arguments = [
        *(executable, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={home / 'profile'}"),
    ]
    # The browser reads commands on descriptor 3 and answers on 4.
    shell = f'exec "$0" "$@" 3<&{from_parent} 4>&{to_parent}'
    process = subprocess.Popen(
        ["bash", "-c", shell, *arguments],
        pass_fds=(from_parent, to_parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_parent)
    os.close(to_parent)
    try:
        yield Browser(from_child, to_child)
    finally:
        os.close(to_child)
        process.terminate()
        process.wait(timeout=30)
        os.close(from_child)
