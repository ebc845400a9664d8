"""A directory of latent sets: the names a server offers."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saif_fast import set_file
from saif_fast.latent_set import LatentSet
from saif_fast.names import SUFFIX, file_name, listed, name_of
from saif_fast.set_file import Identity, SetHeader

logger = logging.getLogger(__name__)

# A link whose target is gone is no set, nor is one that leads to itself.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# Nanoseconds in which a directory may change twice with one time, on the coarsest file systems.
_SAME_TIME = 2_000_000_000
_MOST_LOGGED = 10


class UnknownSet(ValueError):
    """There is no set of a name; the message names those there are."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Errors inside are ValueErrors about set ``name``.

    They say nothing of where the file lies, which is none of a client's business.
    """
    try:
        yield
    except UnknownSet:
        raise
    except ValueError as error:
        raise ValueError(f"set {name!r}: {error}") from error
    except OSError as error:
        raise ValueError(f"set {name!r}: {error.strerror or 'cannot be read'}") from error


class SetDirectory:
    """``<name>.safetensors`` files of one directory; the name of a set is its file's.

    A set is a regular file, or a link to one, whose name is legal. Whatever else lies there is
    ignored.

    Raises:
        ValueError: the directory does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        if not os.path.isdir(self.root):
            raise ValueError(f"set directory: expected a directory, got {self.root}")
        self._names: tuple[Identity, list[str]] | None = None  # as of a time of the directory
        self._ignored: list[str] = []  # names of files, as the log has them

    def path(self, name: str) -> Path:
        """The file of set ``name``, whether it exists or not."""
        return self.root / file_name(name)

    def names(self) -> list[str]:
        """Names of the sets that are there now, sorted. Only a directory that changed is read.

        Raises:
            ValueError: the directory cannot be read.
        """
        try:
            now = set_file.identity(os.stat(self.root))
            if self._names is None or self._names[0] != now:
                names, began = self._list(), time.time_ns()
                self._names = (now, names) if began - now[0] > _SAME_TIME else None
                return names
            return list(self._names[1])
        except OSError as error:
            raise ValueError(f"the set directory cannot be read ({error.strerror})") from error

    def identity(self, name: str) -> Identity:
        """Which file set ``name`` is now: another one, or this one written anew, has another.

        Raises:
            UnknownSet: there is none.
            ValueError: the file system does not say.
        """
        return self._find(name)[1]

    def read(self, name: str) -> tuple[bytes, Identity]:
        """The file's content, and which file it is; raises as :meth:`load`."""
        path, _ = self._find(name)
        with reading(name):
            return set_file.read(path)

    def header(self, name: str) -> SetHeader:
        """What the set says of itself, without its tensors; raises as :meth:`load`."""
        path, _ = self._find(name)
        with reading(name):
            return set_file.read_header(path)

    def headers(self) -> Iterator[tuple[str, SetHeader]]:
        """Each set by name, as :meth:`header`; those that go meanwhile are left out."""
        for name in self.names():
            try:
                yield name, self.header(name)
            except UnknownSet:
                continue

    def load(self, name: str) -> LatentSet:
        """Load set ``name``.

        Raises:
            UnknownSet: there is none.
            ValueError: as :meth:`LatentSet.from_bytes`, or the file system's reason.
        """
        data, _ = self.read(name)
        with reading(name):
            return LatentSet.from_bytes(data)

    def load_all(self) -> dict[str, LatentSet]:
        """Every set by name."""
        return {name: self.load(name) for name in self.names()}

    def _find(self, name: str) -> tuple[str, Identity]:
        path = os.path.join(self.root, file_name(name))  # quicker than a Path, for thousands
        with reading(name):
            try:
                found = os.stat(path)
            except OSError as error:
                if error.errno not in _NOTHING_THERE:
                    raise
                raise self._unknown(name) from None
        if not stat.S_ISREG(found.st_mode):
            raise self._unknown(name)
        return path, set_file.identity(found)

    def _unknown(self, name: str) -> UnknownSet:
        try:
            names = self.names()
        except ValueError as error:
            return UnknownSet(f"unknown set {name!r}; available sets: {error}")
        return UnknownSet(f"unknown set {name!r}; available sets: {listed(names, name)}")

    def _list(self) -> list[str]:
        names, ignored = [], []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                name = name_of(entry.name)
                if name is not None and _is_file(entry):
                    names.append(name)
                else:
                    ignored.append(ascii(entry.name))
        self._log(sorted(ignored))
        return sorted(names)

    def _log(self, ignored: list[str]) -> None:
        """Once for each change of what is ignored, not for each reading of the directory."""
        if ignored and ignored != self._ignored:
            more = len(ignored) - _MOST_LOGGED
            logger.warning(
                "Ignored in the set directory, as no sets by name or kind of file: %s%s",
                ", ".join(ignored[:_MOST_LOGGED]),
                f" and {more} more" if more > 0 else "",
            )
        self._ignored = ignored


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # of a link: where it leads cannot be seen
        return False
