"""The set directory as it is now: files come, change and go under a running engine."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from offered import catalog, vector

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory
from saif_vllm.catalog import SetCatalog
from saif_vllm.parsing import parse_extra_args


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


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sets whose files are read whole."""
    names: list[str] = []
    read = SetDirectory.read
    monkeypatch.setattr(
        SetDirectory, "read", lambda self, name: names.append(name) or read(self, name)
    )
    return names


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, reads: list[str]) -> None:
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


def test_a_request_costs_one_stat_of_its_own_files(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(200):
        vector(float(i)).save(tmp_path / f"a{i}.safetensors")
    offered, asked = catalog(tmp_path), {"saif": "a7 + a8*0.5"}
    parse_extra_args(asked, offered)
    looked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path: looked.append(Path(path).name) or stat(path))
    monkeypatch.setattr(os, "scandir", None)
    del reads[:]
    assert parse_extra_args(asked, offered)
    assert looked == ["a7.safetensors", "a8.safetensors"] and not reads


def test_memory_does_not_go_with_what_the_directory_holds(tmp_path: Path, reads: list[str]) -> None:
    # Nor with the names that a server has seen, each for some requests.
    offered = catalog(tmp_path, max_sets=2)
    for i in range(20):
        file = vector(float(i + 1)).save(tmp_path / f"a{i}.safetensors")
        offered[file.stem]
        offered[file.stem]
        offered["a0"]
        offered.read_received(offered[file.stem].found)
    assert len(offered._by_name) == len(offered._by_content) == 8
    assert len(reads) == 20  # what is asked for again and again is not forgotten


def test_whether_a_name_still_means_a_file(tmp_path: Path) -> None:
    offered, file = catalog(tmp_path), tmp_path / "a.safetensors"
    vector(1.0).save(file)
    found = offered["a"].found
    assert offered.is_current(found)
    vector(2.0).save(file)
    assert not offered.is_current(found)
    file.write_bytes(b"half a file")
    assert not offered.is_current(found)
    file.unlink()
    assert not offered.is_current(found)


def test_a_directory_that_cannot_be_read_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked when a request ends, too, where an OSError would end the engine.
    offered = catalog(tmp_path)
    vector(1.0).save(tmp_path / "a.safetensors")
    found = offered["a"].found

    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(os, "stat", stale)
    for ask in (lambda: offered["a"], lambda: parse_extra_args({"saif": "a"}, offered)):
        with pytest.raises(ValueError) as refused:
            ask()
        assert str(refused.value) == "set 'a': Stale file handle"
    assert not offered.is_current(found)
    assert "a" not in offered


def test_a_request_has_the_sets_that_were_found_for_it_first(
    tmp_path: Path, reads: list[str]
) -> None:
    file = vector(1.0).save(tmp_path / "a.safetensors")
    offered, other, asked = catalog(tmp_path), catalog(tmp_path), {"saif": "a"}

    def value(of: SetCatalog = offered) -> float:
        found = parse_extra_args(asked, of)
        assert found is not None
        return float(found.sets[0][0].compiled[2].vector[0])

    with offered.one_request():
        assert value() == 1
        vector(2.0).save(file)
        assert (value(), value(other)) == (1, 2)
        with offered.one_request():  # within another one
            file.unlink()
            assert value() == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown set 'a'"):
            value()


def test_ten_thousand_sets_are_soon_checked(tmp_path: Path, reads: list[str]) -> None:
    content = vector(1.0).save(tmp_path / "a.safetensors").read_bytes()
    for i in range(10_000):
        (tmp_path / f"user-{i:05d}.safetensors").write_bytes(content)
    began = time.process_time()
    catalog(tmp_path).check_sets()
    assert time.process_time() - began < 5  # by their squares it would be a quarter of an hour
    assert len(reads) == 32  # those that are loaded at start, whole


def test_at_start_a_set_that_does_not_fit_is_named_however_many_there_are(tmp_path: Path) -> None:
    for i in range(6):
        vector(float(i + 1)).save(tmp_path / f"a{i}.safetensors")
    offered = catalog(tmp_path, max_sets=2)
    offered.check_sets()
    (tmp_path / "b (1).safetensors").touch()  # no set
    (tmp_path / "c.safetensors").symlink_to("nothing")
    offered.check_sets()
    file = vector(1.0, d_model=32).save(tmp_path / "a5.safetensors")
    with pytest.raises(ValueError, match="set 'a5': latent set was made for hidden size 32"):
        offered.check_sets()
    file.write_bytes(vector(1.0).save(file).read_bytes()[:-4])
    with pytest.raises(ValueError, match="set 'a5': not a complete safetensors file"):
        offered.check_sets()


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
