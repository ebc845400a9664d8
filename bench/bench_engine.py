"""A model of 0.2 billion parameters in vLLM: steered throughput against plain, interleaved.

Two engines of one model in this process, with and without the plugin, each in eager mode. What is
timed is decoding: prompts have two tokens. One layer is hooked, the one in the middle. The control
of a row, the plain engine against itself in the same rounds, tells what is noise at that batch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Before vLLM reads it: front end, core and worker in this process, so nothing waits for another.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import pytest
import torch

import saif_vllm
from saif_fast import Edit, Latent, LatentSet, SparseAutoencoder

D_MODEL, N_LAYERS, VOCAB, LAYER = 1024, 16, 2048, 8
N_SETS, N_LIVE = 256, 16
TOKENS = {1: 24, 8: 16, 32: 8, 64: 8}  # of a request in a round, by batch size
ROUNDS = 8  # even: half of them begin with the baseline
ENGINE = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 64,
    "max_num_seqs": 64,
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 28,
    "enable_prefix_caching": False,
}
# Least throughput, steered over plain or many sets over one.
TARGETS = {"idle": 0.99, "constant": 0.97, "live": 0.95, "distinct": 0.95}


class Engines(NamedTuple):
    """Two engines of the same model."""

    plain: Any
    steered: Any


def generate(llm: Any, n_requests: int, saif: Sequence[str | None]) -> list[list[int]]:
    """Return token ids of as many generations; request i asks for ``saif[i]``."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=TOKENS[n_requests],
            ignore_eos=True,
            detokenize=False,
            extra_args=None if name is None else {"saif": name},
        )
        for name in saif
    ]
    prompts = [{"prompt_token_ids": [1 + i, 2 + i]} for i in range(n_requests)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def write_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=2816,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        dtype=torch.bfloat16,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_sets(folder: Path) -> Path:
    """Write ``constant``, a vector, and ``live-0`` to ``live-255``, of 16 latents each."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(N_SETS * N_LIVE, D_MODEL, generator=generator) / D_MODEL**0.5
    scalars = torch.zeros(len(rows))
    sae = SparseAutoencoder(
        W_enc=rows.T.contiguous(),
        b_enc=scalars,
        threshold=scalars,
        W_dec=rows,
        b_dec=torch.zeros(D_MODEL),
        layer=LAYER,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        architecture="jumprelu",
        name="random",
    )
    folder.mkdir()
    vector = rows.sum(0)
    constant = LatentSet.from_vector(vector, layer=LAYER, num_layers=N_LAYERS)
    constant.save(folder / "constant.safetensors")
    for i in range(N_SETS):
        latents = [Latent(j, Edit("clamp", 4.0)) for j in range(i * N_LIVE, (i + 1) * N_LIVE)]
        live = LatentSet.from_sae(sae, latents, num_layers=N_LAYERS)
        live.save(folder / f"live-{i}.safetensors")
    return folder


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    from vllm import LLM

    folder = tmp_path_factory.mktemp("engine")
    model, sets = str(write_model(folder / "model")), write_sets(folder / "sets")
    plain = LLM(model, **ENGINE)
    steering = saif_vllm.engine_args(sets, max_sets=N_SETS + 1, max_latents=N_SETS * N_LIVE)
    yield Engines(plain, LLM(model, **ENGINE, **steering))


CASES = {"idle": None, "constant": "constant", "live": "live-0"}


@pytest.mark.parametrize("batch", TOKENS)
@pytest.mark.parametrize("case", CASES)
def test_steered_against_plain(compare, engines: Engines, case: str, batch: int) -> None:
    def steered() -> list[list[int]]:
        return generate(engines.steered, batch, [CASES[case]] * batch)

    def plain() -> list[list[int]]:
        return generate(engines.plain, batch, [None] * batch)

    assert (steered() == plain()) == (case == "idle")
    compare(
        steered,
        plain,
        baseline_name="vLLM without the plugin",
        rounds=ROUNDS,
        target=TARGETS[case],
    )


@pytest.mark.parametrize("batch", TOKENS)
def test_256_distinct_sets_against_one(compare, engines: Engines, batch: int) -> None:
    # All 256 are loaded. A step has as many of them as requests, the next round the next.
    sets = itertools.cycle(f"live-{i}" for i in range(N_SETS))

    def distinct() -> list[list[int]]:
        return generate(engines.steered, batch, list(itertools.islice(sets, batch)))

    def one() -> list[list[int]]:
        return generate(engines.steered, batch, ["live-0"] * batch)

    assert (distinct() == one()) == (batch == 1)
    compare(
        distinct,
        one,
        baseline_name="one live set for all requests",
        rounds=ROUNDS,
        target=TARGETS["distinct"],
    )
