"""Residuals at the last prompt token, kept by an engine: those that transformers computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_job import MODES, RANKS_ANYWHERE, environment

from saif_fast.embedded import model_path

COMPARE = """
import dataclasses
import json
import sys
import torch
from vllm import LLM
import saif_vllm
from saif_fast.embedded import sae_path
from saif_fast.identify import ContrastPair, ContrastPairs, build_pairs, collect, find_latents
from saif_fast.sae import load_sae
from saif_fast.tasks.embedded import embedded_task
from transformers import AutoModelForCausalLM

LAYERS = [1, 2]
steering = saif_vllm.engine_args(sys.argv[2], layers=LAYERS, max_captures=7)
llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, block_size=32, max_num_seqs=4,
          max_num_batched_tokens=48, **json.loads(sys.argv[3]), **steering)
task = embedded_task("french")
pairs = build_pairs(task.identify[:8], [wording.text for wording in task.wordings[:2]])
tokenizer, plain = llm.get_tokenizer(), ["The black cat sleeps.", "A dog runs in the park."]
engine = collect(saif_vllm.residuals(llm), tokenizer, pairs, LAYERS, plain=plain)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
expected = collect(model, tokenizer, pairs, LAYERS, plain=plain)
for layer in LAYERS:
    for got, want in zip(engine.at(layer), expected.at(layer), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
assert engine.model.d_model == expected.model.d_model
assert (engine.model_name, engine.num_layers) == (expected.model_name, expected.num_layers)

def refused(says, act):
    try:
        act()
    except ValueError as error:
        assert says in str(error), error
    else:
        raise SystemExit(f"not refused: {says}")

source = saif_vllm.residuals(llm)
refused("layer: expected a hooked one (1, 2), got 0", lambda: source.read([[1, 2]], [[1]], [0]))
refused("text 1: expected 1 to 255 tokens, got 0",
        lambda: source.read([[1, 2], []], [[1], []], LAYERS))
for side, says in (("", "negative '': expected 1 to 255 tokens, got 0"),
                   ("cat " * 300, "negative 'cat cat cat")):
    bad = ContrastPairs((*pairs.pairs[:1], ContrastPair("a cat", side)))
    refused(f"pair 1: {says}", lambda: collect(source, tokenizer, bad, LAYERS, chat=False))
sae = dataclasses.replace(load_sae(sae_path()), model_name="org/other")
refused("got one of 'org/other'", lambda: find_latents(source, tokenizer, sae, pairs))
assert source.read([], [], LAYERS)[1].shape == (0, source.model.d_model)
print("EQUAL", "V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1")
"""


@pytest.mark.engine
@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        ("v1-eager", {}),
        ("v1-compiled", {}),
        pytest.param("v2-eager", {}, marks=pytest.mark.slow),
        pytest.param("v1-eager", {"tensor_parallel_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["v1-eager", "v1-compiled", "v2-eager", "tensor_parallel"],
)
def test_an_engine_keeps_what_transformers_computes(
    mode: str, ranks: dict[str, Any], tmp_path: Path
) -> None:
    engine = json.dumps({**MODES[mode]["engine"], **ranks})
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(model_path()), str(tmp_path), engine],
        env={**environment(mode), **RANKS_ANYWHERE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"EQUAL {mode[:2].upper()}" in done.stdout
