"""Steered vLLM generates what steered Hugging Face generates, for many architectures.

The models are tiny and random, in fp32. Each serves one mixed batch; the reference generates each
request alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import architectures
import hf_reference
import pytest
from engine_job import Job, run, run_in_turn
from hf_reference import Comparison

pytestmark = pytest.mark.engine

# One of each structure; Llama's, the sum of two tensors, is the embedded model's.
QUICK = ("cohere", "gpt2", "gpt_neox")
SLOW = tuple(sorted(architectures.ARCHITECTURES.keys() - set(QUICK)))
slow = pytest.mark.slow


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Job, dict[str, Any]]]:
    """Save a model with its sets; return the job that serves it, and Hugging Face's answers."""

    @cache
    def make(model_type: str) -> tuple[Job, dict[str, Any]]:
        requests = architectures.requests()
        model, sets, job = architectures.save(model_type, tmp_path_factory.mktemp(model_type))
        reference = {
            name: hf_reference.generate(model, sets, asked) for name, asked in requests.items()
        }
        plain = {
            name: hf_reference.generate(model, sets, {**asked, "extra_args": None})
            for name, asked in requests.items()
        }
        # Else equality would say nothing.
        same = [name for name in requests if reference[name]["tokens"] == plain[name]["tokens"]]
        assert same == [name for name in requests if requests[name]["extra_args"] is None]
        return replace(job, batches=[list(requests.values())]), reference

    return make


def compare(reference: dict[str, Any], batch: list[dict[str, Any]]) -> None:
    comparison = Comparison()
    for (name, expected), got in zip(reference.items(), batch, strict=True):
        comparison.add(name, expected, got)
    comparison.check()


@pytest.fixture(scope="session")
def served(case: Callable[[str], Any]) -> Callable[[tuple[str, ...]], dict[str, Any]]:
    """Serve architectures in turn in one process, since importing vLLM takes most of the time."""

    @cache
    def serve(model_types: tuple[str, ...]) -> dict[str, Any]:
        results = run_in_turn([case(model_type)[0] for model_type in model_types], timeout=550)
        return dict(zip(model_types, results, strict=False))

    return serve


@pytest.mark.parametrize(
    ("model_type", "together"),
    [
        *((model_type, QUICK) for model_type in QUICK),
        *(pytest.param(model_type, SLOW, marks=slow) for model_type in SLOW),
    ],
    ids=[*QUICK, *SLOW],
)
def test_steered_equals_hugging_face(
    model_type: str,
    together: tuple[str, ...],
    served: Callable[[tuple[str, ...]], dict[str, Any]],
    case: Callable[[str], Any],
) -> None:
    results = served(together)
    assert model_type in results, "an engine before this one failed"
    compare(case(model_type)[1], results[model_type].check().batches[0])


@pytest.mark.parametrize(
    ("model_type", "mode"),
    [
        pytest.param("gpt_neox", "v1-vllm-compile", marks=slow),
        pytest.param("cohere", "v1-vllm-compile", marks=slow),
        pytest.param("cohere", "v2-eager", marks=slow),
        pytest.param("gpt_neox", "v2-eager", marks=slow),
        pytest.param("gpt2", "v2-vllm-compile", marks=slow),
    ],
)
def test_steered_equals_hugging_face_in_other_modes(
    model_type: str, mode: str, case: Callable[[str], Any]
) -> None:
    job, reference = case(model_type)
    result = run(replace(job, mode=mode)).check()
    assert result.v2 == mode.startswith("v2")
    assert result.compilation == ("NONE" if mode.endswith("eager") else "VLLM_COMPILE")
    compare(reference, result.batches[0])


def test_an_unknown_structure_is_refused_at_start(set_dir: Path) -> None:
    from saif_fast.embedded import model_path

    served = run(Job(model_path(), set_dir=set_dir, site=["difference_of_halves"]))
    assert served.returncode != 0
    assert "LlamaDecoderLayer: expected a decoder layer whose residual stream is" in served.log
