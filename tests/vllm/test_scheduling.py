"""Prompts in chunks, requests thrown out and resumed: each is steered where its positions say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import embedded_sets
import hf_reference
import pytest
from engine_job import Job, run

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

ASKED: dict[str, dict[str, Any] | None] = {
    "unsteered": None,
    "generated": {"saif": "clamp_middle"},
    "last_layer": {"saif": "add_last"},
    "prompt": {"saif": "vector_middle*0.5", "saif_scope": "prompt"},
    "all": {"saif": "vector_middle*0.3", "saif_scope": "all"},
    "window": {"saif": "vector_middle", "saif_start": 3, "saif_stop": 12},
    "decay": {"saif": "both", "saif_start": 1, "saif_decay": 0.2},
    "two_sets": {"saif": "clamp_middle*0.5 + vector_last*0.3"},
}


def long_requests(max_tokens: int) -> dict[str, dict[str, Any]]:
    """Prompts of about 150 tokens, no two of one length: every chunk ends elsewhere."""
    text = [token for prompt in embedded_sets.prompts(16) for token in prompt]
    return {
        name: {
            "prompt": text[7 * i : 7 * i + 140 + 5 * i],
            "max_tokens": max_tokens,
            "extra_args": extra_args,
        }
        for i, (name, extra_args) in enumerate(ASKED.items())
    }


@pytest.mark.parametrize(
    ("mode", "max_tokens"), [("v1-eager", 40), ("v2-eager", 24)], ids=["v1", "v2"]
)
def test_chunks_and_preemption_change_nothing(
    mode: str,
    max_tokens: int,
    set_dir: Path,
    sets: Mapping[str, LatentSet],
    hf_model: Any,
) -> None:
    asked = long_requests(max_tokens)
    engine = {
        "max_num_batched_tokens": 48,  # a prompt takes four steps, between the others' tokens
        "max_num_seqs": 8,
        "num_gpu_blocks_override": 24,  # of 32 tokens, for 8 requests of about 200
        "disable_log_stats": False,
    }
    served = run(Job(model_path(), [list(asked.values())], mode, set_dir, engine=engine)).check()
    assert served.preemptions > 0
    comparison = hf_reference.Comparison()
    for (name, request), got in zip(asked.items(), served.batches[0], strict=True):
        comparison.add(name, hf_reference.generate(hf_model, sets, request), got)
    comparison.check()
