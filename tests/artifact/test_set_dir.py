"""A directory of sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory


def vector_set(value: float) -> LatentSet:
    return LatentSet.from_vector(torch.full((4,), value), layer=0, num_layers=1)


def test_files_are_offered_by_name(tmp_path: Path) -> None:
    for name in ("french", "a.b-c_1"):
        vector_set(1.0).save(tmp_path / f"{name}.safetensors")
    (tmp_path / "notes.txt").write_text("not a set")
    directory = SetDirectory(tmp_path)
    assert directory.names() == ["a.b-c_1", "french"]
    assert directory.load("french").content_hash == vector_set(1.0).content_hash
    assert set(directory.load_all()) == {"a.b-c_1", "french"}


def test_an_unknown_name_says_what_is_there(tmp_path: Path) -> None:
    vector_set(1.0).save(tmp_path / "french.safetensors")
    with pytest.raises(ValueError, match="unknown set 'german'; available sets: french"):
        SetDirectory(tmp_path).load("german")


def test_a_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set name"):
        SetDirectory(tmp_path).load("../french")


def test_a_file_that_no_request_could_name_is_named(tmp_path: Path) -> None:
    vector_set(1.0).save(tmp_path / "bad name.safetensors")
    with pytest.raises(ValueError, match=r"bad name\.safetensors: not the name of a set"):
        SetDirectory(tmp_path).names()


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a directory"):
        SetDirectory(tmp_path / "none")
