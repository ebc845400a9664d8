"""Names of sets: one grammar for files, requests, labels and logs."""

from __future__ import annotations

import bisect
import difflib
import hashlib
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
_MOST_COMPARED = 50  # names that end alike, because comparing takes 20 us each


def is_name(text: str) -> bool:
    """Return whether ``text`` is a legal set name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def check_name(name: str) -> str:
    """Return ``name``, or raise ValueError unless it is a legal set name."""
    if not is_name(name):
        raise ValueError(f"set name: expected {_GRAMMAR}, got {_quoted(name)}")
    return name


def set_name(text: str) -> str:
    """Return a legal set name as near to ``text`` as possible."""
    legal = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    legal = legal if legal[:1].isalnum() else f"set_{legal}"
    if len(legal) > LONGEST_NAME:  # tell apart texts that begin alike
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        legal = f"{legal[: LONGEST_NAME - 9]}_{digest}"
    return legal


def file_name(name: str) -> str:
    """Return the file name of set ``name``; raise ValueError unless the name is legal."""
    return f"{check_name(name)}{SUFFIX}"


def name_of(file: str) -> str | None:
    """Return the name of the set in a file of this name; None if no reader takes it for a set."""
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
    """Return ``path`` with the suffix of a set file, if it was left out.

    Raises:
        ValueError: no reader would take that file for a set.
    """
    if path.suffix != SUFFIX:
        path = path.with_name(f"{path.name}{SUFFIX}")
    check_file_name(path.name)
    return path


def listed(available: Collection[str], asked: str | None = None) -> str:
    """List up to ten available names for a message: those nearest to ``asked`` if any are near.

    A directory that cannot be read raises nothing here, because the message is about something
    else.
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
    """Return the names most like ``asked`` out of sorted ``names``, the most alike first.

    A name that is mistyped in one place has its beginning or its end intact. So only its neighbours
    in the alphabet and the names with the same end are compared, however many names there are.
    """
    place = bisect.bisect(names, asked)
    beside = names[max(0, place - _MOST_LISTED) : place + _MOST_LISTED]
    end = asked[-max(2, len(asked) // 3) :].lower()
    alike = (name for name in names if name.lower().endswith(end))
    compared = dict.fromkeys([*beside, *itertools.islice(alike, _MOST_COMPARED)])
    return difflib.get_close_matches(asked, compared, _MOST_LISTED)


def _quoted(text: str) -> str:
    # The beginning shows what is wrong.
    shown = ascii(text)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
