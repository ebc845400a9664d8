"""A path in vLLM's ``additional_config`` that vLLM's compile key leaves out.

vLLM hashes that dictionary as JSON, and sends it to its processes by pickle. JSON sees a string's
characters, which here are the same for every path. Pickle, ``copy`` and ``dataclasses.asdict`` keep
the attribute that holds the path.
"""

from __future__ import annotations

from typing import Any


class UnhashedPath(str):
    """A path that JSON does not show, and that is lost on the way through JSON."""

    path: str

    def __new__(cls, path: str) -> UnhashedPath:
        self = super().__new__(cls, "(a path that JSON does not show)")
        self.path = path
        return self

    def __reduce__(self) -> tuple[type[UnhashedPath], tuple[str]]:
        return UnhashedPath, (self.path,)

    # Arguments that name different directories must compare as different.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnhashedPath) and self.path == other.path

    def __ne__(self, other: object) -> bool:  # str defines it, so it does not follow from __eq__
        return not self == other

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"


def path_of(value: Any) -> Any:
    """Return the path of an :class:`UnhashedPath`; any other value itself.

    A command line carries the path as a plain string.
    """
    return value.path if isinstance(value, UnhashedPath) else value
