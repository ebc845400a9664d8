"""The two runtimes behind one protocol generate and score the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest, open_runtime

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
    GenerationRequest(prompt=PROMPT, saif="windowed", max_tokens=16),
    GenerationRequest(prompt=PROMPT, logit_bias={40: 30.0, 41: -200.0}, max_tokens=8),
)
TEXTS = (
    LogProbRequest(prompt=PROMPT, continuation=" the strong frog sleeps."),
    LogProbRequest(prompt=PROMPT, continuation=" forest"),
    LogProbRequest(prompt=PROMPT, continuation=" the strong frog sleeps.", saif="add_last*0.4"),
    LogProbRequest(prompt=PROMPT, continuation=" the strong frog", saif="clamp_middle"),
)
SERVE = """
import sys
from dataclasses import replace
import msgspec
from saif_fast.runtime import GenerationRequest, LogProbRequest, open_runtime
from saif_fast.set_dir import SetDirectory

if __name__ == "__main__":
    requests = msgspec.json.decode(sys.argv[3], type=list[GenerationRequest])
    directory = SetDirectory(sys.argv[2])
    # A mapping: what is steered with need not be on disk.
    sets = {name: directory.load(name) for name in ("add_last", "clamp_middle")}
    sets["windowed"] = replace(sets["clamp_middle"], defaults={"saif_start": 1})
    runtime = open_runtime("vllm", sys.argv[1], sets, max_model_len=512, dtype="float32")
    generated = runtime.generate(requests)
    texts = msgspec.json.decode(sys.argv[4], type=list[LogProbRequest])
    scored = runtime.log_probs(texts)
    for serve, expected in (
        (
            lambda: runtime.generate([GenerationRequest(prompt="a", saif="french")]),
            "available sets: add_last, clamp_middle, windowed",
        ),
        (
            lambda: runtime.log_probs([texts[0], LogProbRequest(prompt="a", continuation="")]),
            "request 1 continuation: expected 1 token or more, got 0",
        ),
        (
            lambda: runtime.log_probs([LogProbRequest(prompt="a", continuation=" frog" * 600)]),
            "request 0 prompt and continuation: expected 1 to 511 tokens, got",
        ),
    ):
        try:
            serve()
        except ValueError as error:
            assert expected in str(error), str(error)
        else:
            raise SystemExit(f"was served, without the error: {expected}")
    runtime.close()
    sys.stdout.buffer.write(b"\\nRESULT " + msgspec.json.encode([generated, scored]) + b"\\n")
"""


def test_vllm_generates_and_scores_as_transformers_does(
    sets: Mapping[str, LatentSet], set_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "serve.py"  # vLLM's processes import it again: not with -c
    script.write_text(SERVE)
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            str(model_path()),
            str(set_dir),
            msgspec.json.encode(REQUESTS).decode(),
            msgspec.json.encode(TEXTS).decode(),
        ],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    generated, scored = json.loads(line.removeprefix("RESULT "))
    got = msgspec.convert(generated, list[Generation])

    windowed = replace(sets["clamp_middle"], defaults={"saif_start": 1})
    offered = {**sets, "windowed": windowed}
    reference = open_runtime("transformers", model_path(), offered, dtype="float32")
    assert got == reference.generate(REQUESTS)
    assert len({tuple(generation.token_ids) for generation in got}) == len(REQUESTS)
    said = msgspec.structs.replace(REQUESTS[3], saif="clamp_middle", options={"saif_start": 1})
    assert reference.generate([said]) == [got[3]], "a set's window is as if the request said it"
    for request, row, expected in zip(TEXTS, scored, reference.log_probs(TEXTS), strict=True):
        assert row == pytest.approx(expected, abs=2e-3), request  # fp32; sums in another order
    assert scored[0] != pytest.approx(scored[2], abs=0.1), "the set steered nothing"
