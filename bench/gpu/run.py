"""``make gpu-check`` and ``make gpu-bench``: the kernels' tests and benchmarks on a GPU.

Needs torch, triton, pytest, hypothesis and pytest-benchmark, and neither an install of this
package nor a virtual environment. Exits with ``NO_GPU`` = 77 where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

NO_GPU = 77
ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parent / "pytest.ini"
MOST_PROCESSES = 8  # each has a CUDA context of half a GB


def pytest(*arguments: str, under: tuple[str, ...] = (), **environment: str) -> int:
    """Run pytest with this folder's settings; ``under`` is a tool that runs it."""
    command = [*under, sys.executable, "-m", "pytest", "-c", str(CONFIG), "-p", "no:cacheprovider"]
    return subprocess.run([*command, *arguments], cwd=ROOT, env=os.environ | environment).returncode


def check() -> int:
    """Run the kernels' tests on the GPU, CUDA graphs among them, then under compute-sanitizer."""
    tests = str(ROOT / "tests" / "kernels")
    # Most of the time goes into compiling some 250 kernels.
    n_processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    parallel = ["-n", str(n_processes)] if importlib.util.find_spec("xdist") else []
    # Compiling for other GPUs needs none: `make test` does it.
    failed = pytest(tests, f"--ignore={tests}/test_aot.py", "--tb=short", *parallel)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on the PATH: memory accesses were not checked.")
        return failed
    # Calls of the driver may fail without harm: torch and Triton probe for features.
    options = ("--tool", "memcheck", "--error-exitcode", "1", "--report-api-errors", "no")
    # torch's own allocator would hide an access beyond a tensor.
    every_kernel = f"{tests}/test_cuda_graphs.py"
    under = (sanitizer, *options)
    return pytest(every_kernel, under=under, PYTORCH_NO_CUDA_MEMORY_CACHING="1") or failed


def bench() -> int:
    """Run all GPU benchmarks."""
    # pytest-benchmark's table would show the host's time, and is longer than all else.
    options = ("--benchmark-only", "--benchmark-quiet", "-q", "--tb=short")
    return pytest(str(ROOT / "bench" / "gpu"), *options)


def main() -> int:
    action = {"check": check, "bench": bench}[sys.argv[1]]
    if not torch.cuda.is_available():
        print(f"No GPU is here: gpu-{sys.argv[1]} has run nothing (exit code {NO_GPU}).")
        return NO_GPU
    return action()


if __name__ == "__main__":
    sys.exit(main())
