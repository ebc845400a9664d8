"""The embedded model, its sets, and what Hugging Face makes of them: computed once per session."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.append(str(Path(__file__).parents[1] / "kernels"))

import embedded_sets
import hf_reference
from engine_job import Job, Served, run

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory

# Without vLLM (macOS) what these import is not there; in CI its absence is a failure.
if importlib.util.find_spec("vllm") is None and "CI" not in os.environ:
    collect_ignore = [
        "test_found_once.py",
        "frontend/test_metrics.py",
        "frontend/test_patches.py",
        "frontend/test_validation.py",
    ]


@pytest.fixture(scope="session")
def hf_model() -> Any:
    return embedded_sets.load_model()


@pytest.fixture(scope="session")
def sets(hf_model: Any) -> dict[str, LatentSet]:
    return embedded_sets.build_sets(hf_model)


@pytest.fixture(scope="session")
def set_dir(sets: Mapping[str, LatentSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_sets.save_sets(dict(sets), tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def requests() -> dict[str, dict[str, Any]]:
    return embedded_sets.requests()


@pytest.fixture(scope="session")
def reference(
    hf_model: Any, sets: Mapping[str, LatentSet], requests: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Generate every request alone by Hugging Face: tokens and gaps."""
    return {name: hf_reference.generate(hf_model, sets, asked) for name, asked in requests.items()}


@pytest.fixture(scope="session")
def plain(requests: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Serve the requests' prompts unsteered, by an engine without the plugin."""
    batch = [{**asked, "extra_args": None} for asked in requests.values()]
    served = run(Job(model_path(), [batch])).check()
    return dict(zip(requests, served.batches[0], strict=True))


@pytest.fixture(scope="session")
def serve(set_dir: Path, requests: Mapping[str, dict[str, Any]]) -> Callable[[str], Served]:
    """Serve all requests in one mixed batch, then some alone, by an engine of the given mode."""

    @cache
    def serve_mode(mode: str) -> Served:
        batches = [list(requests.values()), *([requests[name]] for name in alone(mode, requests))]
        return run(Job(model_path(), batches, mode=mode, set_dir=set_dir)).check()

    return serve_mode


@pytest.fixture(scope="session")
def solo(requests: Mapping[str, dict[str, Any]]) -> Callable[[str], list[str]]:
    return lambda mode: alone(mode, requests)


def alone(mode: str, requests: Mapping[str, Any]) -> list[str]:
    # Triton's interpreter needs seconds for what a step takes otherwise.
    return ["unsteered", "clamp_middle", "add_last"] if mode.startswith("v2") else list(requests)


@pytest.fixture(autouse=True)
def near_ties(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Report the test's comparisons; ``tests/conftest.py`` prints those of all workers."""
    hf_reference.Comparison.checked.clear()
    yield
    for comparison in hf_reference.Comparison.checked:
        record_property("near_ties", (comparison.compared, comparison.excused))


@pytest.fixture(scope="session")
def bad_set_dirs(
    sets: Mapping[str, LatentSet], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """Set directories that an engine for the embedded model refuses, and what it says."""
    good = sets["clamp_last"]
    d_model, n_layers = good.d_model, good.num_layers

    def folder(name: str, **found: LatentSet | bytes) -> Path:
        path = tmp_path_factory.mktemp(name)
        for stem, content in found.items():
            file = SetDirectory(path).path(stem)
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                content.save(file)
        return path

    def vector(size: int, layer: int, layers: int) -> LatentSet:
        return LatentSet.from_vector(torch.ones(size), layer=layer, num_layers=layers)

    whole = SetDirectory(folder("whole", a=good)).path("a").read_bytes()
    return {
        "hidden size": (folder("hidden", a=vector(32, 2, n_layers)), "hidden size 32"),
        "layer count": (folder("layers", a=vector(d_model, 2, 4)), "4 layers"),
        "layer not hooked": (folder("unhooked", a=vector(d_model, 0, n_layers)), "a hooked layer"),
        "truncated": (folder("truncated", a=whole[:-40]), "set 'a': not a complete"),
        "not safetensors": (folder("text", a=b"hello, world: a set"), "set 'a': not a"),
        "pickle": (folder("pickle", a=pickle.dumps({"vector": [1.0]})), "set 'a': not a"),
        "too many latents": (folder("latents", a=good), "expected at most 4 live latents, got 8"),
    }
