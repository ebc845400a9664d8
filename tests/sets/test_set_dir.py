"""A directory of sets, and what else may lie in it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory, UnknownSet


def vector_set(value: float) -> LatentSet:
    return LatentSet.from_vector(torch.full((4,), value), layer=0, num_layers=1)


def test_files_are_offered_by_name(tmp_path: Path) -> None:
    for name in ("french", "a.b-c_1", "2nd"):
        vector_set(1.0).save(tmp_path / f"{name}.safetensors")
    (tmp_path / "notes.txt").write_text("not a set")
    directory = SetDirectory(tmp_path)
    assert directory.names() == ["2nd", "a.b-c_1", "french"]
    assert directory.load("french").content_hash == vector_set(1.0).content_hash
    assert set(directory.load_all()) == {"2nd", "a.b-c_1", "french"}
    assert dict(directory.headers())["french"] == vector_set(1.0).header


def test_an_unknown_name_says_what_is_there(tmp_path: Path) -> None:
    vector_set(1.0).save(tmp_path / "french.safetensors")
    with pytest.raises(UnknownSet, match="unknown set 'german'; available sets: french"):
        SetDirectory(tmp_path).load("german")


def test_a_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set name"):
        SetDirectory(tmp_path).load("../french")


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            end.bind(path.name)
        finally:
            os.chdir(here)


# By their names, or by what they are. A name that is legal is asked for, too.
STRAY: dict[str, tuple[str, Callable[[Path], object]]] = {
    "apple_double": ("._french", lambda path: path.write_bytes(b"\0\5\26\7")),
    "copy": ("french (1)", lambda path: path.write_bytes(b"x")),
    "umlaut": ("größe", lambda path: path.write_bytes(b"x")),
    "no_utf8": ("a\udcff", lambda path: path.write_bytes(b"x")),
    "newline": ("a\nb", lambda path: path.write_bytes(b"x")),
    "long": ("a" * 65, lambda path: path.write_bytes(b"x")),
    "directory": ("folder", lambda path: path.mkdir()),
    "fifo": ("fifo", os.mkfifo),
    "socket": ("socket", bind),
    "dangling": ("dangling", lambda path: path.symlink_to("nothing")),
    "loop": ("loop", lambda path: path.symlink_to(path.name)),
    "to_a_fifo": ("device", lambda path: path.symlink_to("/dev/null")),
}


@pytest.mark.timeout(20)  # where a FIFO is opened to be read, nothing goes on
@pytest.mark.parametrize("kind", STRAY)
def test_what_is_no_set_is_ignored(kind: str, tmp_path: Path) -> None:
    stem, make = STRAY[kind]
    vector_set(1.0).save(tmp_path / "french.safetensors")
    make(tmp_path / f"{stem}.safetensors")
    directory = SetDirectory(tmp_path)
    assert directory.names() == [name for name, _ in directory.headers()] == ["french"]
    if kind in ("directory", "fifo", "socket", "dangling", "loop", "to_a_fifo"):
        with pytest.raises(UnknownSet, match=f"unknown set '{stem}'; available sets: french$"):
            directory.load(stem)
    with pytest.raises(UnknownSet, match=r"unknown set 'german'; available sets: french$"):
        directory.load("german")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["directory", "fifo", "to_a_fifo"])
def test_a_set_is_only_read_out_of_a_file(kind: str, tmp_path: Path) -> None:
    # Also where the file has become something else since it was looked at.
    path = tmp_path / "a.safetensors"
    STRAY[kind][1](path)
    with pytest.raises(
        ValueError, match=r"expected a latent set file, got (a dir|no reg)"
    ) as error:
        LatentSet.load(path)
    assert str(error.value).startswith(str(path))


def test_a_link_to_a_file_elsewhere_is_a_set(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "sets"
    folder.mkdir()
    vector_set(1.0).save(elsewhere / "v1.safetensors")
    (folder / "french.safetensors").symlink_to(elsewhere / "v1.safetensors")
    directory = SetDirectory(folder)
    assert directory.names() == ["french"]
    assert directory.load("french").content_hash == vector_set(1.0).content_hash


def test_what_is_ignored_is_logged_once_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, caplog.handler.level = SetDirectory(tmp_path), logging.WARNING
    for i in range(15):
        (tmp_path / f"x ({i:02d})\n.safetensors").touch()
    for _ in range(3):
        assert directory.names() == []
    (tmp_path / "x (03)\n.safetensors").unlink()
    vector_set(1.0).save(tmp_path / "french.safetensors")
    assert [directory.names() for _ in range(3)] == [["french"]] * 3
    first, second = (record.getMessage() for record in caplog.records)
    assert "'x (00)\\n.safetensors', " in first and first.endswith(" and 5 more")
    assert "(03)" in first and "(03)" not in second
    assert str(tmp_path) not in caplog.text and "\n." not in first


def test_a_directory_is_read_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reads.append(path) or scandir(path))
    directory = SetDirectory(tmp_path)
    for name in ("a", "b"):  # at once: a file system's clock may stand still between them
        vector_set(1.0).save(tmp_path / f"{name}.safetensors")
        assert name in directory.names()
    os.utime(tmp_path, ns=(1, 1))  # long ago
    del reads[:]
    assert [directory.names() for _ in range(3)] == [["a", "b"]] * 3
    assert len(reads) == 1
    directory.names().clear()  # the caller's own
    (tmp_path / "a.safetensors").unlink()
    assert directory.names() == ["b"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG])
@pytest.mark.parametrize("call", ["stat", "open"])
def test_an_error_of_the_file_system_is_about_the_set(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector_set(1.0).save(tmp_path / "french.safetensors")
    directory, original = SetDirectory(tmp_path), getattr(os, call)

    def failing(path: object, *args: object, **options: object) -> object:
        if str(path).endswith("french.safetensors"):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **options)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(ValueError) as error:
        directory.load("french")
    assert str(error.value) == f"set 'french': {os.strerror(number)}"


def test_a_directory_that_cannot_be_listed_still_has_its_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector_set(1.0).save(tmp_path / "french.safetensors")
    directory = SetDirectory(tmp_path)

    def denied(path: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    assert directory.load("french").content_hash == vector_set(1.0).content_hash
    with pytest.raises(UnknownSet) as unknown:
        directory.load("german")
    assert str(unknown.value) == (
        "unknown set 'german'; available sets: the set directory cannot be read (Permission denied)"
    )


def test_a_directory_that_is_gone_has_no_sets(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    directory = SetDirectory(folder)
    folder.rmdir()
    with pytest.raises(
        UnknownSet, match=r"unknown set .a.; available sets: .*No such file"
    ) as gone:
        directory.load("a")
    assert str(tmp_path) not in str(gone.value)


def test_a_header_tells_of_a_file_that_is_cut_short(tmp_path: Path) -> None:
    file = vector_set(1.0).save(tmp_path / "french.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="set 'french': not a complete safetensors file"):
        SetDirectory(tmp_path).header("french")


def test_a_large_file_that_is_no_set_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((2).to_bytes(8, "little") + b"{}")
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ValueError, match="set 'model': a safetensors file, but not a latent set"):
        SetDirectory(tmp_path).load("model")


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a directory"):
        SetDirectory(tmp_path / "none")
