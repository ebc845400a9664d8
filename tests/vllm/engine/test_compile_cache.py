"""One compile cache for engines with and without steering: neither gets the other's graph.

vLLM's key holds the configuration and the traced sources, but no hook; the switch is in
``additional_config``, which is part of it.
"""

from __future__ import annotations

import subprocess
import sys
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
    plain = [{**request, "extra_args": None} for request in asked]
    batches = [asked] if set_dir else [plain, asked, plain]
    # The plugin is loaded either way: vLLM's key holds VLLM_PLUGINS too, and it must not be that.
    env = {"VLLM_CACHE_ROOT": str(cache), "VLLM_PLUGINS": "saif"}
    job = Job(model_path(), batches, "v1-vllm-compile", set_dir, env=env, site=site)
    return run(job)


def compare(served: Served, expected: Mapping[str, Any], batch: int = 0) -> None:
    comparison = Comparison()
    for name, got in zip(NAMES, served.check().batches[batch], strict=True):
        comparison.add(name, expected[name], got)
    comparison.check(most_excused=0)


KEYS = """
import sys
import saif_vllm
from vllm import EngineArgs

def key(folder, by_hand={}, **changes):
    options = saif_vllm.engine_args(folder, **{"layers": [1, 2], **changes})
    options["additional_config"]["saif"].update(by_hand)
    return EngineArgs(sys.argv[1], **options).create_engine_config().compute_hash()

ours = key(sys.argv[2])
assert key(sys.argv[3]) == ours  # each arrives: test_two_engines.py
others = [key(sys.argv[2], layers=[2]), key(sys.argv[2], max_sets=4), key(sys.argv[2], max_dose=1),
          key(sys.argv[2], {"version": "0.0.0"}),
          key(sys.argv[2], {"set_dir": sys.argv[2]})]  # as plain flags carry it
assert len({ours, *others}) == 6, (ours, others)
"""


def test_the_key_holds_what_is_fixed_at_start_and_not_the_sets(
    set_dir: Path, tmp_path: Path
) -> None:
    # Sets come and go in a directory, and a server's may lie anywhere: neither compiles anew.
    command = [sys.executable, "-c", KEYS, str(model_path()), str(set_dir), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def first_with(
    set_dir: Path, requests: Mapping[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Served, Served]:
    """A compile cache, what an engine with steering served that filled it, and one without next."""
    cache = tmp_path_factory.mktemp("first_with")
    with_steering = start(cache, set_dir, requests).check()
    return cache, with_steering, start(cache, None, requests).check()


def test_first_with_then_without_then_with_steering(
    first_with: tuple[Path, Served, Served],
    set_dir: Path,
    requests: Mapping[str, dict[str, Any]],
    reference: Mapping[str, Any],
    plain: Mapping[str, Any],
) -> None:
    cache, with_steering, without = first_with
    compare(with_steering, reference)
    compare(without, plain)
    compare(start(cache, set_dir, requests), reference)  # a graph out of the cache


def test_a_plain_engine_that_has_the_plugin_refuses_to_steer(
    first_with: tuple[Path, Served, Served], plain: Mapping[str, Any]
) -> None:
    _, _, without = first_with
    refused = without.batches[1]
    assert refused["type"] == "SteeringRequestError"  # a ValueError: scenario.py catches no other
    assert "'saif': this engine does not steer; start it with saif_vllm" in refused["error"]
    compare(without, plain, batch=2)  # and goes on
