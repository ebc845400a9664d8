"""Kernels run on the GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # these tests' own modules

from op_inputs import DEVICE
from steering_cases import FEW

import saif_kernels.steer as steer


@pytest.fixture(scope="session", autouse=True)
def gpu_rounding() -> Iterator[None]:
    """Interpreted kernels treat bf16 as a GPU does."""
    if DEVICE != "cpu":
        yield
        return
    from interpreter import bf16_put_right

    with bf16_put_right():
        yield


@pytest.fixture
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens have programs of their own, or all lie in tiles; its parameter is indirect."""
    monkeypatch.setattr(steer, "FEW_TOKENS", 10**6 if request.param == FEW else 0)
