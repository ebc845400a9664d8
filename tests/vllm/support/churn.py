"""Set directories as in the field: with stray files, and sets that come and go quickly."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_AT_A_TIME = 6  # requests


def put_strays(folder: Path, some_set: bytes) -> None:
    """Put files that are no sets into a set directory, as other programs leave them behind."""
    files = {
        "._french": b"\0\5\26\7",
        "french (1)": some_set,
        "größe": some_set,
        "line\nbreak": some_set,
        "x" * 65: some_set,
    }
    for name, content in files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    for name, make in {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "dangling": lambda path: path.symlink_to("nowhere"),
        "loop": lambda path: path.symlink_to(path.name),
    }.items():
        path = folder / f"{name}.safetensors"
        if not os.path.lexists(path):
            make(path)


class Churn:
    """Names in a set directory whose files are replaced, removed and put back all the time.

    Args:
        folder: the directory.
        files: of sets, which are what the names hold in turn.
        pause: seconds between two changes.
    """

    names = tuple(f"churn-{i}" for i in range(6))

    def __init__(self, folder: Path, files: Sequence[Path], pause: float) -> None:
        self._folder, self._files, self._pause = folder, files, pause
        self._rng = random.Random(0)
        self.changes = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Change sets while the code inside runs; remove their files at the end."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(self._pause):
                self.change()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for name in self.names:
                (self._folder / f"{name}.safetensors").unlink(missing_ok=True)

    def change(self) -> None:
        """Replace or remove the set of one of the names."""
        file = self._folder / f"{self._rng.choice(self.names)}.safetensors"
        if self._rng.random() < 0.1:
            file.unlink(missing_ok=True)
        else:
            partial = file.with_suffix(".partial")
            shutil.copyfile(self._rng.choice(self._files), partial)
            partial.replace(file)
        self.changes += 1


def ask_streaming(
    address: str, key: str, body: Mapping[str, Any], names: Sequence[str], seconds: float
) -> Counter[str]:
    """Ask for ``names`` in streams, several at a time, as long as that, and once at least.

    Returns:
        How often each outcome was seen: the tokens of a stream that came to its end, the status and
        message of a refusal, or the error inside of a stream.
    """
    outcomes: Counter[str] = Counter()
    rng, headers = random.Random(0), {"Authorization": f"Bearer {key}"}

    def ask(client: httpx.Client) -> str:
        asked = {**body, "vllm_xargs": {"saif": rng.choice(names)}, "stream": True}
        answer = client.post("/v1/completions", json=asked)
        return _outcome(answer.status_code, answer.text)

    with (
        httpx.Client(base_url=address, headers=headers, timeout=60) as client,
        ThreadPoolExecutor(_AT_A_TIME) as pool,
    ):
        end = time.monotonic() + seconds
        while not outcomes or time.monotonic() < end:
            outcomes.update(pool.map(ask, [client] * _AT_A_TIME))
    return outcomes


def _outcome(status: int, text: str) -> str:
    if status != 200:
        return f"{status}: {text}"
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    if events[-1:] != ["[DONE]"]:
        return f"no end: {text[-300:]}"
    tokens: list[int] = []
    for event in map(json.loads, events[:-1]):
        if "error" in event or event["choices"][0]["finish_reason"] == "error":
            return f"an error in the stream: {event}"
        tokens += event["choices"][0].get("token_ids") or []
    return str(tokens)
