"""Generation in a real vLLM on the embedded model: with the plugin against without, interleaved.

The model is tiny, so what steering adds to a step weighs more here than on any model of use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import saif_vllm
from saif_fast import Edit, Latent, LatentSet, SparseAutoencoder
from saif_fast.embedded import model_path, sae_path

N_REQUESTS, N_TOKENS, N_SETS, N_LIVE = 32, 32, 32, 16
ENGINE = {
    "enforce_eager": True,
    "max_model_len": 256,
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 28,
    "enable_prefix_caching": False,  # or every round after the first would skip its prompts
}


class Engines(NamedTuple):
    """The same model twice, and how to run a batch on one of them."""

    plain: object
    steered: object

    def run(self, llm, saif: list[str | None]) -> list[list[int]]:
        """Token ids of ``N_REQUESTS`` generations; request i asks for ``saif[i % len(saif)]``."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=N_TOKENS,
                ignore_eos=True,
                detokenize=False,
                extra_args=None if saif[i % len(saif)] is None else {"saif": saif[i % len(saif)]},
            )
            for i in range(N_REQUESTS)
        ]
        prompts = [{"prompt_token_ids": list(range(10 + i, 42 + i))} for i in range(N_REQUESTS)]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def write_sets(folder: Path) -> None:
    sae = SparseAutoencoder.from_saelens(sae_path("last"))
    num_layers = sae.layer + 1
    for i in range(N_SETS):
        indices = range(i * N_LIVE, (i + 1) * N_LIVE)
        for name, edit in (("constant", Edit("add", 0.1)), ("live", Edit("at_least", 2.0))):
            latents = [Latent(index, edit) for index in indices]
            latent_set = LatentSet.from_sae(sae, latents, num_layers=num_layers)
            latent_set.save(folder / f"{name}-{i}.safetensors")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    from vllm import LLM

    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    model = str(model_path())
    plain = LLM(model, **ENGINE)
    steering = saif_vllm.engine_args(folder, max_sets=2 * N_SETS, max_latents=N_SETS * N_LIVE)
    steered = LLM(model, **ENGINE, **steering)
    yield Engines(plain, steered)
    for llm in (plain, steered):
        llm.llm_engine.engine_core.shutdown()


CASES = {
    "idle": [None],
    "constant": ["constant-0"],
    "live": ["live-0"],
    "live-32-sets": [f"live-{i}" for i in range(N_SETS)],
}


@pytest.mark.parametrize("case", CASES)
def test_plugin_against_plain(compare, engines: Engines, case: str) -> None:
    plain = engines.run(engines.plain, [None])
    assert (engines.run(engines.steered, CASES[case]) == plain) == (case == "idle")
    compare(
        lambda: engines.run(engines.steered, CASES[case]),
        lambda: engines.run(engines.plain, [None]),
        baseline_name="vLLM without the plugin",
        rounds=8,
    )


def test_32_sets_against_one(compare, engines: Engines) -> None:
    compare(
        lambda: engines.run(engines.steered, CASES["live-32-sets"]),
        lambda: engines.run(engines.steered, CASES["live"]),
        baseline_name="one live set for all requests",
        rounds=8,
    )
