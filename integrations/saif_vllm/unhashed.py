"""A path in vLLM's ``additional_config`` that is no part of vLLM's compile key.

vLLM hashes that dictionary as JSON, and sends it to its processes by pickle. To JSON a string is
its characters, here the same for every path; pickle, ``copy`` and ``dataclasses.asdict`` take the
attribute along.
"""

from __future__ import annotations

from typing import Any


class UnhashedPath(str):
    """A path that JSON does not show. What has gone through JSON is no path any more."""

    path: str

    def __new__(cls, path: str) -> UnhashedPath:
        self = super().__new__(cls, "(a path that JSON does not show)")
        self.path = path
        return self

    def __reduce__(self) -> tuple[type[UnhashedPath], tuple[str]]:
        return UnhashedPath, (self.path,)

    # Arguments that name different directories are different.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnhashedPath) and self.path == other.path

    def __ne__(self, other: object) -> bool:  # str has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"


def path_of(value: Any) -> Any:
    """The path that ``value`` carries, or itself: a command line carries a plain string."""
    return value.path if isinstance(value, UnhashedPath) else value
