from __future__ import annotations

import inspect
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from offered import config

import saif_vllm
from saif_fast import limits
from saif_vllm import plugin, seams
from saif_vllm.catalog import SetCatalog
from saif_vllm.config import DISABLE_VARIABLE, SteeringConfig, disabled

GOOD: dict[str, Any] = asdict(config(max_dose=0.5, version=version("saif-fast")))


@pytest.mark.parametrize(
    "change",
    [
        {"set_dir": "sets"},  # each process has a working directory of its own
        {"set_dir": None},
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


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_engines_arguments_name_their_own_directory(
    order: Sequence[int], tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    made = {i: saif_vllm.engine_args(folders[i], layers=[1]) for i in order}
    for i, folder in enumerate(folders):
        # As vLLM sends its configuration to the processes that it starts.
        sent = pickle.loads(pickle.dumps(made[i]["additional_config"]))
        found = SteeringConfig.from_vllm_config(SimpleNamespace(additional_config=sent))
        assert found is not None and found.set_dir == str(folder)
    assert made[0] != made[1]


def test_a_relative_directory_is_that_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sets").mkdir()
    monkeypatch.chdir(tmp_path)
    options = saif_vllm.engine_args("sets", layers=[1])
    monkeypatch.chdir("/")
    found = SteeringConfig.from_vllm_config(SimpleNamespace(**options))
    assert found is not None and found.set_dir == str(tmp_path / "sets")


def test_a_directory_that_is_gone_at_the_start_is_named(tmp_path: Path) -> None:
    options = saif_vllm.engine_args(tmp_path, layers=[1])
    tmp_path.rmdir()
    config = SteeringConfig.from_vllm_config(SimpleNamespace(**options))
    assert config is not None
    with pytest.raises(ValueError, match=f"set directory: expected a directory, got {tmp_path}"):
        SetCatalog.from_vllm_config(SimpleNamespace(**options), config)


def test_arguments_that_went_through_json_are_refused(tmp_path: Path) -> None:
    options = saif_vllm.engine_args(tmp_path, layers=[1])
    sent = json.loads(json.dumps(options["additional_config"]))
    with pytest.raises(ValueError, match="set_dir: expected an absolute path, got '"):
        SteeringConfig.from_vllm_config(SimpleNamespace(additional_config=sent))


def test_it_comes_back_out_of_vllms_configuration() -> None:
    sent = json.loads(json.dumps(asdict(SteeringConfig(**GOOD))))  # as a command line carries it
    assert SteeringConfig.from_vllm_config(vllm_config(sent)) == SteeringConfig(**GOOD)


@pytest.mark.parametrize(
    "additional", [{}, None, {"other": 1}, object()], ids=["empty", "none", "others", "object"]
)
def test_no_steering_asked_for(additional: object) -> None:
    assert SteeringConfig.from_vllm_config(SimpleNamespace(additional_config=additional)) is None


@pytest.mark.parametrize(
    "saif", [{}, True, {**GOOD, "more": 1}, {k: v for k, v in GOOD.items() if k != "version"}]
)
def test_what_engine_args_did_not_make_is_refused(saif: object) -> None:
    with pytest.raises(ValueError, match=r"as made by saif_vllm\.engine_args"):
        SteeringConfig.from_vllm_config(vllm_config(saif))


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="expected version"):
        SteeringConfig.from_vllm_config(vllm_config({**GOOD, "version": "0.0.0"}))


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
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def arm() -> None:
        raise error("no")

    monkeypatch.setattr(plugin, "arm", arm)
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert "steering is not available here" in caplog.text
    # One that is to steer does not.
    with pytest.raises(error):
        saif_vllm.engine_args(tmp_path, layers=[1])


@pytest.mark.parametrize(
    ("plugins", "reason"),
    [
        ("other", "or to be unset"),
        ("", "or to be unset"),
        ("other, saif", "without white space, which vLLM takes for a part of the name"),
        ("saif\t,other", "without white space"),
    ],
)
def test_vllm_was_told_to_load_other_plugins(
    plugins: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    with pytest.raises(RuntimeError, match="VLLM_PLUGINS: expected it to name 'saif' ") as raised:
        seams.require_armed()
    assert f"'saif' {reason}" in str(raised.value)
    assert str(raised.value).endswith(f"got {plugins!r}")


@pytest.mark.parametrize(("plugins", "loaded"), [("other,saif", True), ("other, saif", False)])
def test_white_space_belongs_to_a_name_where_vllm_reads_it(
    plugins: str, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.plugins import DEFAULT_PLUGINS_GROUP, load_plugins_by_group

    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    assert ("saif" in load_plugins_by_group(DEFAULT_PLUGINS_GROUP)) == loaded


def test_an_engine_has_the_limits_of_the_other_runtimes() -> None:
    # It cannot take them from there: the plugin imports nothing but the standard library.
    defaults = inspect.signature(saif_vllm.engine_args).parameters
    assert defaults["max_dose"].default == limits.MAX_DOSE
    assert defaults["max_strength"].default == limits.MAX_STRENGTH


@pytest.mark.parametrize(
    ("value", "means"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_what_disables(value: str, means: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, value)
    assert disabled() == means


def test_a_disabled_plugin_makes_no_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, "1")
    sentence = "SAIF_DISABLE: expected unset or 0 in an engine that steers, got '1'"
    with pytest.raises(RuntimeError, match=f"^{sentence}$"):
        saif_vllm.engine_args(tmp_path, layers=[1])
