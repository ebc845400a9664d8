"""What a set may be called: one grammar for files, requests, labels and logs."""

from __future__ import annotations

import bisect
import difflib
import itertools
import re
from collections.abc import Collection
from pathlib import Path

# ASCII, and short enough for every file system.
LONGEST_NAME = 64
NAME_PATTERN = rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}"
SUFFIX = ".safetensors"
_GRAMMAR = f"a letter or digit, then letters, digits, '_', '.', '-', {LONGEST_NAME} in all at most"
_MOST_LISTED = 10  # names in a message
_MOST_COMPARED = 50  # names that end alike, as comparing takes 20 us each


def is_name(text: str) -> bool:
    """Whether a set may be called so."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def check_name(name: str) -> str:
    """Return ``name``, or raise ValueError unless a set may be called so."""
    if not is_name(name):
        raise ValueError(f"set name: expected {_GRAMMAR}, got {_quoted(name)}")
    return name


def file_name(name: str) -> str:
    """The file of set ``name`` in a set directory; ValueError unless a set may be called so."""
    return f"{check_name(name)}{SUFFIX}"


def name_of(file: str) -> str | None:
    """The set that a file of this name holds; None: no reader would take it for a set."""
    stem = file.removesuffix(SUFFIX)
    return stem if stem != file and is_name(stem) else None


def check_file_name(file: str) -> None:
    """Raise ValueError unless a set directory offers a file of this name."""
    if name_of(file) is None:
        raise ValueError(
            f"expected a file NAME{SUFFIX}, which a set directory offers as NAME ({_GRAMMAR}), "
            f"got {_quoted(file)}"
        )


def completed(path: Path) -> Path:
    """The file to write a set to where ``path`` was asked for: the suffix may be left out.

    Raises:
        ValueError: no reader would take that file for a set.
    """
    if path.suffix != SUFFIX:
        path = path.with_name(f"{path.name}{SUFFIX}")
    check_file_name(path.name)
    return path


def listed(available: Collection[str], asked: str | None = None) -> str:
    """What a message says there is: up to ten names, those nearest to ``asked`` if any are near.

    A directory that cannot be read raises nothing here, since the message is about something else.
    """
    try:
        names = sorted(available)
    except ValueError as error:
        return str(error)
    shown = names
    if len(names) > _MOST_LISTED:
        near = [] if asked is None else _nearest(asked, names)
        shown = near or names[:_MOST_LISTED]
    hidden = len(names) - len(shown)
    return (", ".join(shown) or "none") + (f" and {hidden:,} more" if hidden else "")


def _nearest(asked: str, names: list[str]) -> list[str]:
    """Names like ``asked`` out of sorted ``names``, the most alike first.

    A name that is mistyped in one place has its beginning or its end intact. So those are compared
    that stand beside it in the alphabet and those that end as it does, of however many there are.
    """
    place = bisect.bisect(names, asked)
    beside = names[max(0, place - _MOST_LISTED) : place + _MOST_LISTED]
    end = asked[-max(2, len(asked) // 3) :].lower()
    alike = (name for name in names if name.lower().endswith(end))
    compared = dict.fromkeys([*beside, *itertools.islice(alike, _MOST_COMPARED)])
    return difflib.get_close_matches(asked, compared, _MOST_LISTED)


def _quoted(text: str) -> str:
    # What is wrong is seen from its beginning.
    shown = ascii(text)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
