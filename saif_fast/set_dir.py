"""Set directories: the sets that a server offers, one file per set."""

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

# A link to nothing, or to itself, is no set.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# Nanoseconds within which two changes of a directory may get the same time (coarsest file system).
_SAME_TIME = 2_000_000_000
_MOST_LOGGED = 10


class UnknownSet(ValueError):
    """Error for a name that no set has; the message lists those there are."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors inside into ValueErrors about set ``name``.

    Their messages reach clients, so they do not say where the file is.
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
    """The latent sets of one directory. Set ``NAME`` is the file ``NAME.safetensors``.

    A set is a regular file with a legal name, or a link to one. Everything else is ignored.

    Raises:
        ValueError: the directory does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        if not os.path.isdir(self.root):
            raise ValueError(f"set directory: expected a directory, got {self.root}")
        self._names: tuple[Identity, list[str]] | None = None  # of the directory in this state
        self._ignored: list[str] = []  # names of files, as logged

    def path(self, name: str) -> Path:
        """Return the file of set ``name``, whether it exists or not."""
        return self.root / file_name(name)

    def names(self) -> list[str]:
        """List the names of the sets that are there now, sorted.

        The directory is read only if it changed.

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
        """Return the identity of the file of set ``name``, which changes when the file does.

        Raises:
            UnknownSet: there is no such set.
            ValueError: the file system cannot tell.
        """
        return self._find(name)[1]

    def read(self, name: str) -> tuple[bytes, Identity]:
        """Read the content and the identity of a set's file; raises as :meth:`load`."""
        path, _ = self._find(name)
        with reading(name):
            return set_file.read(path)

    def header(self, name: str) -> SetHeader:
        """Read a set's header, without its tensors; raises as :meth:`load`."""
        path, _ = self._find(name)
        with reading(name):
            return set_file.read_header(path)

    def headers(self) -> Iterator[tuple[str, SetHeader]]:
        """Yield name and header of each set. Sets that are deleted meanwhile are left out."""
        for name in self.names():
            try:
                yield name, self.header(name)
            except UnknownSet:
                continue

    def load(self, name: str) -> LatentSet:
        """Load set ``name``.

        Raises:
            UnknownSet: there is no such set.
            ValueError: as :meth:`LatentSet.from_bytes`, or the file system's reason.
        """
        data, _ = self.read(name)
        with reading(name):
            return LatentSet.from_bytes(data)

    def load_all(self) -> dict[str, LatentSet]:
        """Load every set, by name."""
        return {name: self.load(name) for name in self.names()}

    def _find(self, name: str) -> tuple[str, Identity]:
        path = os.path.join(
            self.root, file_name(name)
        )  # quicker than a Path: sets may be thousands
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
        """Warn once per change of what is ignored, not per reading of the directory."""
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
    except OSError:  # a link whose target cannot be examined
        return False
