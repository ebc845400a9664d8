"""Servers that something else starts are guarded like those of ``saif serve``; or do not start."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hf_reference import Comparison
from http_server import VLLMS_OWN, refused, server
from offered import config

from saif_fast.embedded import model_path
from saif_vllm.config import EXTENSION

pytestmark = pytest.mark.engine


def plain_flags(set_dir: Path) -> dict[str, Any]:
    """A server that nothing of ours starts."""
    options = config(set_dir=str(set_dir), max_sets_per_request=8, version=version("saif-fast"))
    return {
        "arguments": (
            *("--model", model_path(), "--served-model-name", "embedded"),
            *("--additional-config", json.dumps({"saif": asdict(options)})),
            *("--worker-extension-cls", EXTENSION),
        ),
        "command": VLLMS_OWN,
    }


def two_processes(set_dir: Path) -> dict[str, Any]:
    """API servers that another process starts."""
    return {"arguments": ("embedded", "--set-dir", set_dir, "--api-server-count", "2")}


@pytest.mark.slow
@pytest.mark.parametrize("how", [plain_flags, two_processes])
def test_a_server_that_is_started_otherwise_is_guarded_too(
    how: Callable[[Path], dict[str, Any]],
    set_dir: Path,
    requests: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> None:
    options = how(set_dir)
    with server(*options.pop("arguments"), **options) as address:
        for _ in range(8):  # connections of their own, which either process may get
            with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
                with pytest.raises(openai.BadRequestError, match="available sets: ablate_last, "):
                    client.completions.create(
                        model="embedded", prompt="a", stream=True, extra_body={"saif": "scale_last"}
                    )
                asked = requests["scale_last"]
                answer = client.completions.create(
                    model="embedded",
                    prompt=asked["prompt"],
                    max_tokens=asked["max_tokens"],
                    temperature=0,
                    extra_body={
                        "vllm_xargs": asked["extra_args"],
                        "ignore_eos": True,
                        "return_token_ids": True,
                    },
                )
                comparison = Comparison()
                got = {"tokens": answer.choices[0].token_ids}  # type: ignore[attr-defined]
                comparison.add("scale_last", reference["scale_last"], got)
                comparison.check()
        for _ in range(4):  # from either process: the engine's count, and those of both front ends
            text = httpx.get(f"{address}/metrics").text
            assert f"saif:tokens_steered_total {8.0 * asked['max_tokens']}\n" in text
            assert 'saif:requests_total{set="scale_last"} 8.0\n' in text


def test_a_server_that_cannot_start_says_why() -> None:
    returncode, output = refused(("embedded", "--set-dir", "nowhere", "--port", "0"))
    assert returncode == 1
    assert output.splitlines()[-1] == "error: set directory: expected a directory, got nowhere"
