"""A server process on loopback, as ``saif serve`` starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

COMMAND = (sys.executable, "-m", "saif_fast.cli", "serve")
VLLMS_OWN = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
ENGINE = (
    *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "20", "--seed", "0"),
    *("--block-size", "32", "--enforce-eager"),  # 32 is what CPU attention wants
)

# Routes that take a body and run no model, or no text through it that could be steered.
NOT_GENERATING = {
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/v1/responses/{response_id}/cancel",
    "/inference/v1/abort_requests",
    "/ping",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
}


def free_port() -> int:
    """Find a port that nothing listens on; another process may still take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(
    *arguments: str | Path,
    command: Sequence[str] = COMMAND,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> Iterator[str]:
    """Yield the address of a server that answers; on exit it has ended, its engine too."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [*command, *arguments, *ENGINE, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(word) for word in words],
            env={**environment(), **(env or {})},
            stdout=log,
            stderr=log,
        )
        try:
            _wait(process, address, timeout)
            yield address
        except BaseException:
            log.seek(0)
            print(log.read()[-6000:])  # pytest shows it with the failure
            raise
        finally:
            process.terminate()
            process.wait(60)


def refused(arguments: Sequence[str | Path], timeout: float = 400) -> tuple[int, str]:
    """Return exit code and output of a server that should not start."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


def metric(address: str, name: str, **labels: str) -> float:
    """Sum the samples of a metric that have these labels."""
    text = httpx.get(f"{address}/metrics").text
    samples = [x for family in text_string_to_metric_families(text) for x in family.samples]
    return sum(x.value for x in samples if x.name == name and labels.items() <= x.labels.items())


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def _wait(process: subprocess.Popen[bytes], address: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(f"no answer from {address} in {timeout:g} s")
