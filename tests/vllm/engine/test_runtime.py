"""The two runtimes behind one protocol generate the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Generation, GenerationRequest, open_runtime

pytestmark = pytest.mark.engine

PROMPT = "User: Tell me about a strong frog behind the forest.\nAssistant:"
REQUESTS = (
    GenerationRequest(prompt=PROMPT, max_tokens=16),
    GenerationRequest(prompt=PROMPT, saif="add_last*0.4", max_tokens=16),
    GenerationRequest(
        prompt=PROMPT,
        saif="clamp_middle",
        options={"saif_stop": 5, "saif_decay": 0.1},
        max_tokens=9,
    ),
    GenerationRequest(prompt=PROMPT, logit_bias={40: 30.0, 41: -200.0}, max_tokens=8),
)
SERVE = """
import sys
import msgspec
from saif_fast.runtime import GenerationRequest, open_runtime
from saif_fast.set_dir import SetDirectory

if __name__ == "__main__":
    requests = msgspec.json.decode(sys.argv[3], type=list[GenerationRequest])
    directory = SetDirectory(sys.argv[2])
    # A mapping: what is steered with need not be on disk.
    sets = {name: directory.load(name) for name in ("add_last", "clamp_middle")}
    runtime = open_runtime("vllm", sys.argv[1], sets, max_model_len=512)
    generated = runtime.generate(requests)
    try:
        runtime.generate([GenerationRequest(prompt="a", saif="french")])
    except ValueError as error:
        assert "available sets: add_last, clamp_middle" in str(error)
    else:
        raise SystemExit("an unknown set was served")
    runtime.close()
    sys.stdout.buffer.write(b"\\nRESULT " + msgspec.json.encode(generated) + b"\\n")
"""


def test_vllm_generates_what_transformers_generates(
    sets: Mapping[str, LatentSet], set_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "serve.py"  # vLLM's processes import it again: not with -c
    script.write_text(SERVE)
    asked = msgspec.json.encode(REQUESTS).decode()
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), str(model_path()), str(set_dir), asked],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    got = msgspec.convert(json.loads(line.removeprefix("RESULT ")), list[Generation])

    reference = open_runtime("transformers", model_path(), sets)
    assert got == reference.generate(REQUESTS)
    assert len({tuple(generation.token_ids) for generation in got}) == len(REQUESTS)
