"""An engine that was asked to steer and cannot does not start: never fluent, unsteered text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from engine_job import Job, run
from hf_reference import Comparison
from offered import config

from saif_fast.embedded import model_path
from saif_vllm.config import EXTENSION
from saif_vllm.seams import VLLM_RANGE

pytestmark = pytest.mark.engine


def flags(set_dir: Path | str) -> dict[str, Any]:
    """Make what `vllm serve` gets on its command line: nothing of ours runs before vLLM does."""
    asked = config(set_dir=str(set_dir), version=version("saif-fast"))
    return {
        "additional_config": {"saif": asdict(asked)},
        "worker_extension_cls": EXTENSION,
    }


def test_plain_flags_steer(
    set_dir: Path, requests: Mapping[str, dict[str, Any]], reference: Mapping[str, Any]
) -> None:
    # The refusals below are refusals of this.
    env = {"VLLM_PLUGINS": "saif"}
    job = Job(model_path(), [[requests["add_last"]]], engine=flags(set_dir), env=env)
    served = run(job).check()
    comparison = Comparison()
    comparison.add("add_last", reference["add_last"], served.batches[0][0])
    comparison.check(most_excused=0)


@pytest.mark.parametrize(
    ("mode", "sabotage", "sentence"),
    [
        pytest.param(
            "v1-eager",
            "hook_does_nothing",
            "canary: layer 1 steered no token of a decode batch",
            id="canary",
            marks=pytest.mark.smoke,
        ),
        ("v2-eager", "hook_does_nothing", "canary: layer 1 steered no token of a decode batch"),
        ("v1-eager", "kernel_does_nothing", "canary: a vector at layer 1 did not change"),
        pytest.param(
            "v2-eager",
            "kernel_does_nothing",
            "canary: a vector at layer 1 did not change",
            marks=pytest.mark.slow,
        ),
        ("v1-eager", "last_layer_does_nothing", "canary: a vector at layer 2 did not change"),
        ("v1-eager", "model_loads_past_the_seam", "the model was loaded without steering"),
        # Its V2 twin needs no engine: worker/test_patches.py.
        ("v1-eager", "runner_prepares_otherwise", "the parameters (self, scheduler_output,"),
        ("v1-eager", "core_is_not_armed", "vLLM has not loaded the plugin 'saif'"),
    ],
)
def test_a_plugin_that_does_not_reach_the_model(
    mode: str, sabotage: str, sentence: str, set_dir: Path
) -> None:
    env = {"SAIF_TEST_SABOTAGE": sabotage}
    served = run(Job(model_path(), mode=mode, set_dir=set_dir, site=["sabotage"], env=env))
    assert served.returncode != 0
    assert sentence in served.log


def test_a_vllm_that_the_plugin_does_not_know(set_dir: Path) -> None:
    # A plain engine starts, as test_config.py has it.
    env = {"VLLM_PLUGINS": "saif", "SAIF_TEST_SABOTAGE": "vllm_is_of_another_version"}
    served = run(Job(model_path(), engine=flags(set_dir), site=["sabotage"], env=env))
    assert served.returncode != 0
    lowest, beyond = (".".join(map(str, version)) for version in VLLM_RANGE)
    assert f"steering supports vLLM >= {lowest}, < {beyond}, got 0.99.0" in served.log


# What else is refused needs no engine: worker/test_attach.py.
@pytest.mark.parametrize(
    ("engine", "env", "feature"),
    [
        ({}, {"VLLM_USE_RUST_FRONTEND": "1"}, "the Rust front end (VLLM_USE_RUST_FRONTEND)"),
        pytest.param(
            {"kv_sharing_fast_prefill": True},
            {},
            "kv_sharing_fast_prefill",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rust_front_end", "kv_sharing_fast_prefill"],
)
def test_a_feature_that_would_steer_wrongly(
    engine: dict[str, Any], env: dict[str, str], feature: str, set_dir: Path
) -> None:
    served = run(Job(model_path(), set_dir=set_dir, engine=engine, env=env))
    assert served.returncode != 0
    assert f"{feature}: expected off in an engine that steers, got on" in served.log


def test_an_import_that_fails_in_the_engines_processes(set_dir: Path) -> None:
    env = {"SAIF_TEST_SABOTAGE": "import_fails_in_the_engine"}
    served = run(Job(model_path(), set_dir=set_dir, site=["sabotage"], env=env, one_process=False))
    assert served.returncode != 0
    assert "saif_kernels" in served.log


def test_a_plugin_that_vllm_was_told_to_skip(set_dir: Path) -> None:
    served = run(Job(model_path(), set_dir=set_dir, env={"VLLM_PLUGINS": "other"}))
    assert served.returncode != 0
    assert "VLLM_PLUGINS: expected it to name 'saif'" in served.log


def test_the_same_where_nothing_of_ours_runs_in_the_front_end(set_dir: Path) -> None:
    env = {"VLLM_PLUGINS": "other"}
    served = run(Job(model_path(), engine=flags(set_dir), env=env, one_process=False))
    assert served.returncode != 0
    assert "VLLM_PLUGINS: expected it to name 'saif'" in served.log


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"worker_extension_cls": ""}, "worker_extension_cls: expected saif_vllm"),
        ({"additional_config": {"saif": {"layers": [1]}}}, "as made by saif_vllm.engine_args"),
        (flags("/nowhere"), "set directory: expected a directory, got /nowhere"),
    ],
    ids=["no_extension", "config_by_hand", "no_set_directory"],
)
def test_flags_that_lack_something(change: dict[str, Any], sentence: str, set_dir: Path) -> None:
    env = {"VLLM_PLUGINS": "saif"}
    served = run(Job(model_path(), engine={**flags(set_dir), **change}, env=env))
    assert served.returncode != 0
    assert sentence in served.log


SEAMS = """
import importlib
import vllm.version
from saif_vllm import plugin, seams, serve
from saif_vllm.frontend.patches import arm_server
from saif_vllm.worker.patches import arm

def refused(owner, name, value):
    original = getattr(owner, name)
    if value is None:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
    try:
        plugin.arm()
        arm_server()
        serve._serve_command()
        arm()
    except RuntimeError as error:
        print(error)
    else:
        raise SystemExit(f"{owner}.{name} was not missed")
    setattr(owner, name, original)

# The model runners' are checked on the runner: worker/test_patches.py.
checked = [seam for seam in seams.SEAMS if "worker.gpu_model_runner" not in seam.module
           and "worker.gpu." not in seam.module]
others = {seams.SERVE_ROUTERS, seams.SERVE_OPTIONS, seams.SERVE_VALIDATE, seams.SERVE_RUN,
          seams.LOAD_MODEL}
assert {*checked} == {*seams.ARMED, *seams.CALLED, *others}, "a seam is armed by nothing here"

def armed():
    found = [getattr(seams.owner(seam), seam.name) for seam in checked]
    return any(hasattr(function, "__saif__") for function in found)

for seam in (seams.FREE_REQUEST, seams.SEND_ERROR):  # of those that plugin.arm() needs, the last
    refused(seams.owner(seam), seam.name, lambda something_else: None)
    assert not armed(), "half of the seams"
for seam in checked:
    module = importlib.import_module(seam.module)
    owner = getattr(module, seam.owner) if seam.owner else module
    refused(owner, seam.name, lambda something_else: None)
    refused(owner, seam.name, 3)
    if seam.keywords:
        code = f"lambda {', '.join(seam.parameters)}, **{seam.keywords[0]}: None"
        refused(owner, seam.name, eval(code))
refused(vllm.version, "__version_tuple__", (0, 23, 0))
refused(vllm.version, "__version_tuple__", (*seams.VLLM_RANGE[1], 0))
"""


def test_every_seam_is_checked_against_its_signature() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEAMS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expected the parameters (self, request, ...), got (something_else)" in done.stdout
    assert "EngineCore.preprocess_add_request: expected a function, got nothing" in done.stdout
    assert done.stdout.count("steering supports vLLM") == 2
    assert "expected the keywords resumable, got (self, request_id, prompt" in done.stdout


BAD_SETS = """
import sys
from vllm import LLM
import saif_vllm

for folder in sys.argv[2:]:
    try:
        options = saif_vllm.engine_args(folder, layers=[1, 2], max_latents=4)
        LLM(sys.argv[1], dtype="float32", max_model_len=512, enforce_eager=True, **options)
    except ValueError as error:
        print(f"{folder.rsplit('/', 1)[1]}: {error}")
    else:
        raise SystemExit(f"{folder} was not refused")
"""


def test_a_bad_set_file_is_named_at_start(bad_set_dirs: dict[str, tuple[Path, str]]) -> None:
    folders = [str(folder) for folder, _ in bad_set_dirs.values()]
    done = subprocess.run(
        [sys.executable, "-c", BAD_SETS, str(model_path()), *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (folder, sentence) in bad_set_dirs.items():
        line = next(x for x in done.stdout.splitlines() if x.startswith(f"{folder.name}: "))
        assert sentence in line, name
