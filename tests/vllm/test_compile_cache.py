"""One compile cache for engines with and without steering: neither gets the other's graph.

vLLM's key holds the configuration and the traced sources, but no hook; the switch is in
``additional_config``, which is part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_job import Job, Served, run
from hf_reference import Comparison

from saif_fast.embedded import model_path

pytestmark = pytest.mark.engine
NAMES = ("add_last", "clamp_middle")


def start(
    cache: Path,
    set_dir: Path | None,
    requests: Mapping[str, dict[str, Any]],
    site: Sequence[str] = (),
) -> Served:
    asked = [requests[name] for name in NAMES]
    batch = asked if set_dir else [{**request, "extra_args": None} for request in asked]
    # The plugin is loaded either way: vLLM's key holds VLLM_PLUGINS too, and it must not be that.
    env = {"VLLM_CACHE_ROOT": str(cache), "VLLM_PLUGINS": "saif"}
    job = Job(model_path(), [batch], "v1-vllm-compile", set_dir, env=env, site=site)
    return run(job)


def compare(served: Served, expected: Mapping[str, Any]) -> None:
    comparison = Comparison()
    for name, got in zip(NAMES, served.check().batches[0], strict=True):
        comparison.add(name, expected[name], got)
    comparison.check(most_excused=0)


def test_first_without_then_with_steering(
    tmp_path: Path,
    set_dir: Path,
    requests: Mapping[str, dict[str, Any]],
    reference: Mapping[str, Any],
    plain: Mapping[str, Any],
) -> None:
    compare(start(tmp_path, None, requests), plain)
    # Should vLLM's key ever miss the switch, the canary sees that the hook is not in the graph.
    refused = start(tmp_path, set_dir, requests, site=["additional_config_not_hashed"])
    assert refused.returncode != 0
    assert "start-up canary: layer 1 steered no token" in refused.log
    compare(start(tmp_path, set_dir, requests), reference)


def test_first_with_then_without_then_with_steering(
    tmp_path: Path,
    set_dir: Path,
    requests: Mapping[str, dict[str, Any]],
    reference: Mapping[str, Any],
    plain: Mapping[str, Any],
) -> None:
    compare(start(tmp_path, set_dir, requests), reference)
    compare(start(tmp_path, None, requests), plain)
    compare(start(tmp_path, set_dir, requests), reference)  # a graph out of the cache
