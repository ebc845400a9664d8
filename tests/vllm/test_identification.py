"""Residuals at the last prompt token, kept by an engine: those that transformers computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_job import MODES, RANKS_ANYWHERE, environment
from offered import catalog

from saif_fast.embedded import model_path
from saif_vllm.capture import LastTokenCapture, Wanted
from saif_vllm.identification import residuals
from saif_vllm.request import parse

D_MODEL = 4


def step(capture: LastTokenCapture, *spans: range) -> torch.Tensor:
    """One step, of the positions of each request; the stream is its tokens' positions, plus 100
    times the request.
    """
    starts = [0, *torch.tensor([len(span) for span in spans]).cumsum(0).tolist()]
    positions = torch.tensor([position for span in spans for position in span])
    capture.begin(torch.tensor(starts, dtype=torch.int32), positions)
    stream = torch.tensor([100.0 * i + p for i, span in enumerate(spans) for p in span])
    stream = stream[:, None].expand(-1, D_MODEL)
    capture.keep(0, stream / 4, stream * 3 / 4)
    return capture.store[0, :, 0]


def test_the_last_prompt_token_is_kept_when_it_comes() -> None:
    capture = LastTokenCapture(1, 3, D_MODEL, torch.float32, "cpu")
    assert step(capture, range(8)).tolist() == [0, 0, 0]
    capture.assign([Wanted(request=0, row=2, last_position=4), Wanted(1, 0, 9)])
    assert step(capture, range(3), range(10), range(5)).tolist() == [109, 0, 0]  # one is a chunk
    assert step(capture, range(3, 5), range(10, 11), range(5, 6)).tolist() == [109, 0, 4]
    capture.assign([])
    assert step(capture, range(5)).tolist() == [109, 0, 4]


def test_what_is_kept_keeps_its_memory() -> None:
    capture = LastTokenCapture(2, 3, D_MODEL, torch.float32, "cpu")
    before = {name: buffer.data_ptr() for name, buffer in capture.tensors().items()}
    capture.assign([Wanted(0, 1, 0)])
    step(capture, range(1))
    assert {name: buffer.data_ptr() for name, buffer in capture.tensors().items()} == before


@pytest.mark.parametrize("value", [4, -1, "1", 1.0, True])
def test_a_row_that_is_not_there_is_refused(value: object, tmp_path: Path) -> None:
    offered = catalog(tmp_path, max_captures=4)
    asked = parse({"saif_capture": 3}, offered)
    assert asked is not None and asked.capture == 3 and not asked.sets
    with pytest.raises(ValueError, match="saif_capture: expected an integer from 0 to 3"):
        parse({"saif_capture": value}, offered)


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"llm: expected a vllm\.LLM, got a dict"):
        residuals({})


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
from saif_fast.tasks import get_task
from transformers import AutoModelForCausalLM

LAYERS = [1, 2]
steering = saif_vllm.engine_args(sys.argv[2], layers=LAYERS, max_captures=7)
llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, block_size=32, max_num_seqs=4,
          max_num_batched_tokens=48, **json.loads(sys.argv[3]), **steering)
task = get_task("french")
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
refused("layer: expected a hooked one (1, 2), got 0", lambda: source.last([[1, 2]], [0]))
refused("text 1: expected 1 to 255 tokens, got 0", lambda: source.last([[1, 2], []], LAYERS))
for side, says in (("", "negative '': expected 1 to 255 tokens, got 0"),
                   ("cat " * 300, "negative 'cat cat cat")):
    bad = ContrastPairs((*pairs.pairs[:1], ContrastPair("a cat", side)))
    refused(f"pair 1: {says}", lambda: collect(source, tokenizer, bad, LAYERS, chat=False))
sae = dataclasses.replace(load_sae(sae_path()), model_name="org/other")
refused("got one of 'org/other'", lambda: find_latents(source, tokenizer, sae, pairs))
assert source.every([], LAYERS, None)[1].shape == (0, source.model.d_model)
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
