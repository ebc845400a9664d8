"""Which worker extensions the front end accepts, without importing ours."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from saif_vllm.config import EXTENSION
from saif_vllm.frontend.patches import _check_extension


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user, with an extension that has ours as a base, and one that has not."""
    name, _, qualname = EXTENSION.rpartition(".")
    base = type(qualname, (), {"__module__": name})
    module = ModuleType("user_module")
    module.Theirs = type("Theirs", (base,), {})  # type: ignore[attr-defined]
    module.Other = type(qualname, (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_ours_and_what_is_based_on_it_is_accepted(user_module: ModuleType) -> None:
    _check_extension(EXTENSION)
    _check_extension("user_module.Theirs")
    assert EXTENSION.rpartition(".")[0] not in sys.modules  # its import arms a worker


@pytest.mark.parametrize("name", ["", "user_module.Other"])
def test_any_other_is_refused(name: str, user_module: ModuleType) -> None:
    with pytest.raises(ValueError, match=f"worker_extension_cls: expected {EXTENSION} .* '{name}'"):
        _check_extension(name)
