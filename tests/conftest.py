"""Settings of the whole suite: the environment, the order of the tests, engine tests without vLLM.

The environment is set while this file is imported: vLLM, triton and the Hugging Face libraries read
theirs once, at import, and vLLM's own processes inherit it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile

import pytest

CACHE = tempfile.mkdtemp(prefix="saif-tests-")

ENVIRONMENT = {
    # Tests download nothing and report to nobody.
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "VLLM_NO_USAGE_STATS": "1",
    # The tensors are tiny: a second thread costs more than it brings, and vLLM's processes have the
    # other core.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Not the user's compile cache: a graph compiled by another version of this code must not serve.
    "VLLM_CACHE_ROOT": CACHE,
}

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402 - after the environment, which it reads

if not torch.cuda.is_available():
    # Read when @triton.jit decorates, in triton's own library too: before triton is imported.
    if "triton" in sys.modules:
        raise pytest.UsageError("triton was imported before tests/conftest.py set TRITON_INTERPRET")
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put quick tests first: then engines, then slow ones; files stay together."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("slow") is not None,
            item.get_closest_marker("engine") is not None,
        )
    )
    # Without vLLM (macOS) its tests cannot run; in CI its absence is a failure.
    if importlib.util.find_spec("vllm") is None and "CI" not in os.environ:
        skip = pytest.mark.skip(reason="vLLM is not installed")
        for item in items:
            if item.get_closest_marker("engine") is not None:
                item.add_marker(skip)


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
