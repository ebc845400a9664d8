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
    # Two engines at a time, by two workers of pytest: vLLM would bind both to the same core.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
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


@pytest.hookimpl(tryfirst=True)  # before markers select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark engine tests, and put quick tests first: then engines, then slow ones."""
    for item in items:
        if item.get_closest_marker("engine") and not item.get_closest_marker("smoke"):
            item.add_marker(pytest.mark.extended)
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often two engines disagreed where they may: at a near tie."""
    found = [
        (report.nodeid.partition("::")[2], compared, excused)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, value in report.user_properties
        if name == "near_ties"
        for compared, excused in [value]
    ]
    if not found:
        return
    terminalreporter.section("vLLM against its reference")
    compared, excused = sum(n for _, n, _ in found), sum(len(names) for _, _, names in found)
    terminalreporter.line(f"near ties excused: {excused} of {compared} comparisons")
    for test, n, names in found:
        terminalreporter.line(f"  {test}: {'; '.join([f'{len(names)} of {n}', *names])}")


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
