from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint

import pytest

from saif_fast import runtime
from saif_fast.runtime import GenerationRequest, find_runtime, installed_runtimes, open_runtime


def register(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    points = [EntryPoint(name=name, value=value, group=runtime.ENTRY_POINTS)]
    monkeypatch.setattr(runtime, "entry_points", lambda group: points)


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*'transformers'.*, got 'onnx'"):
        open_runtime("onnx", "model", {})


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: EntryPoint) -> None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")

    register(monkeypatch, "vllm", "somewhere:Runtime")
    monkeypatch.setattr(EntryPoint, "load", load)
    with pytest.raises(ValueError, match=r"needs the package vllm.*saif-fast\[vllm\]"):
        open_runtime("vllm", "model", {})


def test_a_package_that_is_imported_late_is_missed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package vllm.*saif-fast\[vllm\]"):
        find_runtime("vllm")


def test_a_missing_module_of_our_own_is_not_a_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, "vllm", "saif_vllm.missing:Runtime")
    with pytest.raises(ModuleNotFoundError, match="saif_vllm"):
        open_runtime("vllm", "model", {})


def test_vllm_is_preferred_and_transformers_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: object())
    assert installed_runtimes() == ["vllm", "transformers"]
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    assert installed_runtimes() == ["transformers"]
    assert importlib.util.find_spec("transformers") is not None


def test_an_unsteered_request_carries_no_steering_keys() -> None:
    assert GenerationRequest(prompt="a", options={"saif_scope": "all"}).extra_args == {}
    steered = GenerationRequest(prompt="a", saif="french", options={"saif_scope": "all"})
    assert steered.extra_args == {"saif": "french", "saif_scope": "all"}
