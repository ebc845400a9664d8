"""The file format of latent sets: safetensors, whose metadata say what the tensors are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from saif_fast.names import check_file_name
from saif_fast.records import Provenance, Site

# 2 has ``defaults``. A set without them is written as 1, which older readers know.
FORMAT_VERSION = 2
_METADATA_KEY = "saif_latent_set"
FIELDS = ("W_enc", "b_enc", "threshold", "W_dec")  # tensors of a site; named LAYER.FIELD
OPTIONAL_FIELD = "vector"
_LENGTH = 8  # bytes at the beginning of a safetensors file: the length of its header
_LONGEST_HEADER = 100_000_000  # bytes: safetensors' own limit
_INCOMPLETE = "not a complete safetensors file"

# Times, size and inode of a file: writing in place changes a time, replacing the file its inode.
Identity: TypeAlias = tuple[int, int, int, int]


class SetHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON in a file's metadata: all that is known of a set without its tensors."""

    format: int
    content_hash: str
    d_model: int
    num_layers: int
    sites: list[Site]
    provenance: Provenance
    defaults: dict[str, str | int | float] = {}

    @property
    def n_live(self) -> dict[int, int]:
        """Number of live latents (those that need the encoder) by layer."""
        return {site.layer: site.n_live for site in self.sites}

    def check_model(self, hidden_size: int, num_layers: int) -> None:
        """Raise ValueError unless the set was made for a model of this shape."""
        if (self.d_model, self.num_layers) != (hidden_size, num_layers):
            raise ValueError(
                f"latent set was made for hidden size {self.d_model} and {self.num_layers} layers, "
                f"but the model has hidden size {hidden_size} and {num_layers} layers"
            )


class _Format(msgspec.Struct):
    format: int


class _Metadata(msgspec.Struct, rename={"metadata": "__metadata__"}):
    """The metadata of a safetensors header."""

    metadata: dict[str, str] = {}


class _Tensor(msgspec.Struct):
    """An entry of a safetensors header. ``__metadata__`` is read as one without bytes."""

    data_offsets: tuple[int, int] = (0, 0)


_tensors = msgspec.json.Decoder(dict[str, _Tensor])
_metadata = msgspec.json.Decoder(_Metadata)


def identity(found: os.stat_result) -> Identity:
    """Return what tells a file from every other file, and from its own earlier contents."""
    # Whoever writes a file in place may restore its mtime, but not its ctime.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def read(path: str | Path) -> tuple[bytes, Identity]:
    """Read a file's content and identity. If it is no latent set, only its header is read.

    Raises:
        OSError: the file system's.
        ValueError: the file is not regular, or its header is not that of a latent set.
    """
    # Not memory-mapped: if a mapped file is truncated, reading it kills the process.
    with _opened(path) as (file, found):
        head = _head(file, found.st_size)
        _parse(head)
        return head + file.read(), identity(found)


def read_header(path: str | Path) -> SetHeader:
    """Read the header of a file, and check that the file is complete; raises as :func:`read`."""
    with _opened(path) as (file, found):
        head = _head(file, found.st_size)
        header = _parse(head)
        ends = (entry.data_offsets[1] for entry in _tensors.decode(head[_LENGTH:]).values())
        if len(head) + max(ends) != found.st_size:
            raise ValueError(_INCOMPLETE)
        return header


def write(path: Path, header: SetHeader, sites: Sequence[Mapping[str, Tensor]]) -> None:
    """Make or replace the file of a set; a reader never sees half of it.

    Args:
        path: the file.
        header: what the file says of the set.
        sites: tensors by field name, one mapping per site of the header.

    Raises:
        ValueError: ``path`` is a directory, or no set directory would offer such a file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write, got a directory")
    check_file_name(path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(_encode(header, sites))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def decode(data: bytes) -> tuple[SetHeader, list[dict[str, Tensor]]]:
    """Return the header in a file's content, and the tensors of each site by field name.

    Raises:
        ValueError: the content is truncated, no safetensors, no latent set, of a newer format, or
            does not hold exactly the tensors of the header's sites.
    """
    header = _parse(data[: _LENGTH + int.from_bytes(data[:_LENGTH], "little")])
    try:
        stored = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{_INCOMPLETE} ({error})") from None
    sites = []
    for site in header.sites:
        fields: dict[str, Tensor] = {}
        for name in (*FIELDS, OPTIONAL_FIELD):
            tensor = stored.pop(f"{site.layer}.{name}", None)
            if tensor is None and name != OPTIONAL_FIELD:
                raise ValueError(f"tensor {site.layer}.{name} is missing")
            if tensor is not None:
                fields[name] = tensor
        sites.append(fields)
    if stored:
        raise ValueError(f"unexpected tensors {sorted(stored)}")
    return header, sites


def _encode(header: SetHeader, sites: Sequence[Mapping[str, Tensor]]) -> bytes:
    # Copies, as safetensors refuses tensors that share memory (tied weights).
    tensors = {
        f"{site.layer}.{name}": tensor.clone(memory_format=torch.contiguous_format)
        for site, fields in zip(header.sites, sites, strict=True)
        for name, tensor in fields.items()
    }
    metadata = {_METADATA_KEY: msgspec.json.encode(header).decode()}
    return safetensors.torch.save(tensors, metadata)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise ValueError(f"expected a latent set file, got {kind}")
        with open(descriptor, "rb", closefd=False) as file:
            yield file, found
    finally:
        os.close(descriptor)


def _head(file: BinaryIO, size: int) -> bytes:
    start = file.read(_LENGTH)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH or length > min(size - _LENGTH, _LONGEST_HEADER):
        raise ValueError(_INCOMPLETE)
    return start + file.read(length)


def _parse(head: bytes) -> SetHeader:
    try:
        return _decode(head)
    except RecursionError:
        raise ValueError(f"{_INCOMPLETE} (its header is too deep)") from None


def _decode(head: bytes) -> SetHeader:
    try:
        metadata = _metadata.decode(head[_LENGTH:]).metadata
    except ValueError as error:
        raise ValueError(f"{_INCOMPLETE} ({error})") from None
    text = metadata.get(_METADATA_KEY)
    if text is None:
        raise ValueError("a safetensors file, but not a latent set (no saif metadata)")
    version = msgspec.json.decode(text, type=_Format).format
    if version > FORMAT_VERSION:
        raise ValueError(
            f"latent set format {version} is newer than this saif-fast reads "
            f"({FORMAT_VERSION}); upgrade saif-fast"
        )
    return msgspec.json.decode(text, type=SetHeader)
