"""What an engine's start settles: nothing is compiled while serving, and experts are started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import embedded_sets
import hf_reference
import pytest
from engine_job import Job, run

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

modes = pytest.mark.parametrize(
    "mode", ["v1-eager", pytest.param("v2-eager", marks=pytest.mark.slow)]
)
ASKED: dict[str, dict[str, Any] | None] = {
    "unsteered": None,
    "generated": {"saif": "clamp_middle"},
    "all": {"saif": "vector_middle*0.3", "saif_scope": "all"},
    "decay": {"saif": "both", "saif_start": 1, "saif_stop": 9, "saif_decay": 0.2},
    "two_sets": {"saif": "clamp_middle*0.5 + vector_last*0.3"},
    "several": {"saif": "add_last"},
}
KERNELS = "launched after the start: _steps_kernel _tally_kernel _tile_kernel _token_kernel"


@modes
def test_nothing_is_compiled_while_serving(
    mode: str, set_dir: Path, sets: Mapping[str, LatentSet], hf_model: Any
) -> None:
    text = [token for prompt in embedded_sets.prompts(16) for token in prompt]
    asked = {
        name: {
            "prompt": text[7 * i : 7 * i + 80 + 9 * i],
            "max_tokens": 12,
            "extra_args": extra_args,
            "params": {"n": 2, "temperature": 1.0} if name == "several" else {},
        }
        for i, (name, extra_args) in enumerate(ASKED.items())
    }
    engine = {
        "max_num_batched_tokens": 80,  # chunks of prompts, beside others' tokens
        "max_num_seqs": 7,
        "max_model_len": 192,
        "num_gpu_blocks_override": 15,  # of 32 tokens, for 7 requests of about 120
        "disable_log_stats": False,
    }
    served = run(
        Job(
            model_path(),
            [list(asked.values())],
            mode,
            set_dir,
            engine_args={"warn_dose": 5.0, "max_captures": 2},
            engine=engine,
            site=["late_kernels"],
        )
    ).check()
    assert served.preemptions > 0
    # Of the kernels themselves, in the interpreter.
    assert KERNELS in served.log
    comparison = hf_reference.Comparison()
    for (name, request), got in zip(asked.items(), served.batches[0], strict=True):
        if name == "several":  # drawn at random
            continue
        comparison.add(name, hf_reference.generate(hf_model, sets, request), got)
    comparison.check()


@modes
def test_a_mixture_of_experts_that_leaves_out_padding_starts(mode: str, tmp_path: Path) -> None:
    _, _, job = architectures.save("qwen3_moe", tmp_path)
    requests = list(architectures.requests().values())
    site = [*job.site, "padding_unwritten"]
    served = run(replace(job, batches=[requests], mode=mode, site=site)).check()
    assert len(served.reports) == sum(asked["extra_args"] is not None for asked in requests)
    assert all(found["planned"] == found["steered"] > 0 for found in served.reports)
