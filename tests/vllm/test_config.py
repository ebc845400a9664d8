from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from offered import config

import saif_vllm
from saif_fast import limits
from saif_vllm import plugin, seams
from saif_vllm.config import SET_DIR_VARIABLE, SteeringConfig

GOOD: dict[str, Any] = asdict(config(max_dose=0.5, version=version("saif-fast")))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ()},
        {"layers": (2, 1)},
        {"layers": (1, 1)},
        {"layers": (-1,)},
        {"max_sets": 0},
        {"max_latents": 1.5},
        {"max_sets_per_request": 0},
        {"max_strength": 0.0},
        {"max_strength": float("inf")},
        {"max_strength": float("nan")},
        {"max_strength": None},
        {"warn_dose": 0},
        {"max_dose": "high"},
        {"max_captures": -1},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(change))}: expected"):
        SteeringConfig(**{**GOOD, **change})


def vllm_config(saif: object) -> Any:
    return SimpleNamespace(additional_config={"saif": saif})


def test_it_comes_back_out_of_vllms_configuration() -> None:
    sent = json.loads(json.dumps(asdict(SteeringConfig(**GOOD))))  # as a command line carries it
    assert SteeringConfig.of(vllm_config(sent)) == SteeringConfig(**GOOD)


@pytest.mark.parametrize("additional", [{}, None, {"other": 1}, object()], ids=repr)
def test_no_steering_asked_for(additional: object) -> None:
    assert SteeringConfig.of(SimpleNamespace(additional_config=additional)) is None


@pytest.mark.parametrize(
    "saif", [{}, True, {**GOOD, "more": 1}, {k: v for k, v in GOOD.items() if k != "version"}]
)
def test_what_engine_args_did_not_make_is_refused(saif: object) -> None:
    with pytest.raises(ValueError, match=r"as made by saif_vllm\.engine_args"):
        SteeringConfig.of(vllm_config(saif))


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="expected version"):
        SteeringConfig.of(vllm_config({**GOOD, "version": "0.0.0"}))


def test_a_missing_or_empty_set_directory_is_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="set directory: expected a directory"):
        saif_vllm.engine_args(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="layers: expected where the set directory is empty"):
        saif_vllm.engine_args(tmp_path)


WITHOUT_SITE = f"import sys; sys.path[:] = [p for p in {sys.path!r} if 'site-packages' not in p]\n"


def test_importing_the_plugin_needs_the_standard_library_only() -> None:
    # vLLM swallows an import failure there, so there must be nothing to fail.
    code = WITHOUT_SITE + "import saif_vllm.plugin"
    done = subprocess.run([sys.executable, "-Sc", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_where_steering_cannot_be_a_plain_engine_starts(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def arm() -> None:
        raise error("no")

    monkeypatch.setattr(seams, "arm", arm)
    monkeypatch.delenv(SET_DIR_VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert "steering is not available here" in caplog.text
    monkeypatch.setenv(SET_DIR_VARIABLE, "sets")
    with pytest.raises(error):
        plugin.register()


def test_an_engine_has_the_limits_of_the_other_runtimes() -> None:
    # It cannot take them from there: the plugin imports nothing but the standard library.
    defaults = inspect.signature(saif_vllm.engine_args).parameters
    assert defaults["max_dose"].default == limits.MAX_DOSE
    assert defaults["max_strength"].default == limits.MAX_STRENGTH
