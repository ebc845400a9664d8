"""The set directory as it is now: files come, change and go under a running engine."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from offered import catalog, vector

from saif_fast.latent_set import LatentSet


def test_what_is_in_the_directory_can_be_asked_for(tmp_path: Path) -> None:
    offered = catalog(tmp_path)
    assert list(offered) == []
    assert "a" not in offered
    with pytest.raises(ValueError, match="unknown set 'a'; available sets: none"):
        offered["a"]
    vector(1.0).save(tmp_path / "a.safetensors")
    assert list(offered) == ["a"]
    assert offered["a"].latent_set.content_hash == vector(1.0).content_hash
    (tmp_path / "a.safetensors").unlink()
    assert "a" not in offered
    with pytest.raises(ValueError, match="unknown set"):
        offered["a"]


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    load = LatentSet.load
    monkeypatch.setattr(LatentSet, "load", lambda path: reads.append(path) or load(path))
    offered, file = catalog(tmp_path), tmp_path / "a.safetensors"
    vector(1.0).save(file)
    first = offered["a"]
    assert offered["a"] is first
    assert len(reads) == 1
    vector(2.0).save(file)  # in its place, of the same size, perhaps in the same instant
    assert offered["a"].latent_set.content_hash == vector(2.0).content_hash
    written = file.read_bytes()
    vector(3.0).save(file)
    file.write_bytes(written)  # not in its place: the same file with other content
    os.utime(file, ns=(1, 1))
    assert offered["a"].latent_set.content_hash == vector(2.0).content_hash


def test_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    # A server whose sets have new names each time must not keep them all.
    offered, old = catalog(tmp_path), None
    for i in range(20):
        file = tmp_path / f"a{i}.safetensors"
        vector(float(i + 1)).save(file)
        offered[file.stem]
        if old is not None:
            old.unlink()
        old = file
    assert len(offered._read) <= 2


def test_whether_a_name_still_means_a_content(tmp_path: Path) -> None:
    offered, file = catalog(tmp_path), tmp_path / "a.safetensors"
    vector(1.0).save(file)
    content_hash = offered["a"].latent_set.content_hash
    assert offered.is_current("a", content_hash)
    vector(2.0).save(file)
    assert not offered.is_current("a", content_hash)
    file.write_bytes(b"half a file")
    assert not offered.is_current("a", content_hash)
    file.unlink()
    assert not offered.is_current("a", content_hash)


def test_a_directory_that_cannot_be_read_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked when a request ends, too, where an OSError would end the engine.
    offered = catalog(tmp_path)
    vector(1.0).save(tmp_path / "a.safetensors")
    content_hash = offered["a"].latent_set.content_hash

    def stale(path: Path, **options: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(ValueError, match="set 'a': Stale file handle"):
        offered["a"]
    assert not offered.is_current("a", content_hash)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (
            vector(1.0, layer=0),
            r"set 'a': latent set: expected a hooked layer \(1, 2\), got layer 0",
        ),
        (vector(1.0, d_model=32), "set 'a': latent set was made for hidden size 32"),
        (b"hello, world: a set", "set 'a': not a complete safetensors file"),
        (vector(1e6), "within torch.float16"),
    ],
    ids=["layer", "model", "damaged", "dtype"],
)
def test_a_set_that_does_not_fit_is_named(
    bad: LatentSet | bytes, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    if isinstance(bad, bytes):
        file.write_bytes(bad)
    else:
        bad.save(file)
    offered = catalog(tmp_path, dtype=torch.float16)
    with pytest.raises(ValueError, match=sentence):
        offered["a"]
    vector(1.0).save(file)
    assert offered["a"]  # mended: no restart needed


def test_a_layer_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers: expected 0 to 2 for this model, got 3"):
        catalog(tmp_path, layers=(1, 3))
