"""A directory of latent sets: the names a server offers."""

from __future__ import annotations

import re
from pathlib import Path

from saif_fast.latent_set import LatentSet

# Short enough for every file system.
NAME_PATTERN = r"[A-Za-z][A-Za-z0-9_.-]{0,199}"
_SUFFIX = ".safetensors"


def check_name(name: str) -> str:
    """Return ``name``, or raise ValueError if it is not a letter, then letters, digits, _ . -
    (200 at most).
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            "set name: expected a letter, then letters, digits, '_', '.' or '-', 200 at most, "
            f"got {name!r}"
        )
    return name


class SetDirectory:
    """``<name>.safetensors`` files of one directory; the name of a set is its file's.

    Raises:
        ValueError: the directory does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise ValueError(f"set directory: expected a directory, got {self.root}")

    def path(self, name: str) -> Path:
        """The file of set ``name``, whether it exists or not."""
        return self.root / f"{check_name(name)}{_SUFFIX}"

    def names(self) -> list[str]:
        """Names of the sets that are there now, sorted.

        Raises:
            ValueError: a file has a name that no request could use.
        """
        found = sorted(self.root.glob(f"*{_SUFFIX}"))
        for file in found:
            if not re.fullmatch(NAME_PATTERN, file.stem):
                raise ValueError(f"{file}: not the name of a set; rename it or take it out")
        return [file.stem for file in found]

    def load(self, name: str) -> LatentSet:
        """Load set ``name``; ValueError as in :meth:`LatentSet.load`, or naming what is
        available.
        """
        if not self.path(name).exists():
            raise ValueError(
                f"unknown set {name!r}; available sets: {', '.join(self.names()) or 'none'}"
            )
        return LatentSet.load(self.path(name))

    def load_all(self) -> dict[str, LatentSet]:
        """Every set by name."""
        return {name: self.load(name) for name in self.names()}
