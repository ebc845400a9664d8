"""SAIF_DISABLE=1: the plugin does nothing at all, so an engine that is to steer does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
from engine_job import Job, run
from offered import config

from saif_fast.embedded import model_path
from saif_vllm.config import DISABLE_VARIABLE, EXTENSION

pytestmark = pytest.mark.engine

SENTENCE = "SAIF_DISABLE: expected unset or 0 in an engine that steers, got '1'"


PATCHED = """
import sys
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.v1.engine.core import EngineCore
print("patched" if hasattr(EngineCore.preprocess_add_request, "__saif__") else "plain")
print("saif_vllm.seams" in sys.modules)
"""


@pytest.mark.parametrize(("value", "found"), [("0", "patched True"), ("1", "plain False")])
def test_the_plugin_leaves_vllm_alone(value: str, found: str) -> None:
    env = {**os.environ, DISABLE_VARIABLE: value, "VLLM_PLUGINS": "saif"}
    command = [sys.executable, "-c", PATCHED]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found.split()


def test_plain_flags_are_refused_by_the_worker(set_dir: Path) -> None:
    # Of ours only the extension runs: nothing else is left to say no.
    asked = config(set_dir=str(set_dir), version=version("saif-fast"))
    flags = {
        "additional_config": {"saif": asdict(asked)},
        "worker_extension_cls": EXTENSION,
    }
    env = {"VLLM_PLUGINS": "saif", DISABLE_VARIABLE: "1"}
    served = run(Job(model_path(), engine=flags, env=env))
    assert served.returncode != 0
    assert SENTENCE in served.log
