"""The file format: what is written is read back, whole or not at all; a damaged file says why."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch

from saif_fast import set_file
from saif_fast.edits import Edit
from saif_fast.latent_set import Latent, LatentSet, Site, SiteTensors

D_MODEL = 8


def example(seed: int = 0) -> LatentSet:
    rows = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(seed))
    latents = [Latent(index=i, edit=Edit("clamp", 3.0)) for i in range(2)]
    column, vector = torch.ones(2), torch.arange(8.0)
    live = SiteTensors(Site(1, latents), rows, column, 2 * column, 3 * rows)
    both = SiteTensors(Site(3, latents[:1]), rows[:1], column[:1], column[:1], rows[1:], vector)
    return LatentSet((live, both), D_MODEL, 4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return example().save(tmp_path / "set.safetensors")


def test_what_was_written_is_read_back(saved: Path) -> None:
    data, _ = set_file.read(saved)
    header, sites = set_file.decode(data)
    assert data == saved.read_bytes()
    assert header == set_file.read_header(saved) == example().header
    for found, expected in zip(sites, example().sites, strict=True):
        assert found.keys() == expected.named().keys()
        assert all(torch.equal(found[name], t) for name, t in expected.named().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("3.W_dec"), r"tensor 3\.W_dec is missing"),
        (lambda tensors: tensors.update({"2.vector": torch.ones(8)}), r"tensors \['2.vector'\]"),
    ],
    ids=["missing", "unexpected"],
)
def test_the_tensors_are_those_of_the_headers_sites(
    change: object, message: str, saved: Path
) -> None:
    tensors = safetensors.torch.load(saved.read_bytes())
    change(tensors)  # type: ignore[operator]
    metadata = {set_file._METADATA_KEY: msgspec.json.encode(example().header).decode()}
    with pytest.raises(ValueError, match=message):
        set_file.decode(safetensors.torch.save(tensors, metadata))


@pytest.mark.parametrize("n_bytes", [4, 40, -1], ids=["length", "header", "tensors"])
def test_a_file_that_is_cut_short_is_not_complete(n_bytes: int, saved: Path) -> None:
    data = saved.read_bytes()[:n_bytes]
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        set_file.read_header(saved)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        set_file.decode(data)


def test_a_header_that_is_too_deep_is_no_crash() -> None:
    head = b'{"__metadata__": ' + b"[" * 100_000
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        set_file.decode(len(head).to_bytes(8, "little") + head)


def test_a_file_is_told_from_its_earlier_content_and_from_its_successor(saved: Path) -> None:
    _, first = set_file.read(saved)
    assert set_file.read(saved)[1] == first
    times = os.stat(saved).st_atime_ns, os.stat(saved).st_mtime_ns
    data = saved.read_bytes()
    saved.write_bytes(data)
    os.utime(saved, ns=times)  # as a tool that keeps times does
    _, in_place = set_file.read(saved)
    example(seed=1).save(saved)
    _, replaced = set_file.read(saved)
    assert len({first, in_place, replaced}) == 3


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (example().save(tmp_path / f"{i}.safetensors") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    rows, column = torch.eye(2, D_MODEL), torch.zeros(2)
    latents = [Latent(index=i, edit=Edit("ablate")) for i in range(2)]
    tied = LatentSet((SiteTensors(Site(1, latents), rows, column, column, rows),), D_MODEL, 2)
    loaded = LatentSet.load(tied.save(tmp_path / "tied.safetensors"))
    assert loaded.content_hash == tied.content_hash


def test_an_interrupted_save_keeps_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        LatentSet.from_vector(torch.ones(8), layer=0, num_layers=4).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_directory_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a file to write, got a directory"):
        example().save(tmp_path)
