"""Text files, all read alike: UTF-8, with or without a byte order mark, LF or CRLF."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

STDIN = "-"


class Line(NamedTuple):
    """A line without its end, and where it stands, as messages name it."""

    place: str  # FILE:NUMBER, counted from 1
    text: str


def read_text(path: str | Path) -> str:
    """The text of a file, or of stdin for ``-``, without a byte order mark at its beginning.

    Raises:
        ValueError: it is not UTF-8; the message begins with path and line.
        OSError: it cannot be read.
    """
    data = sys.stdin.buffer.read() if str(path) == STDIN else Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec's positions are those of error.object, which does not have the mark.
        before = error.object[: error.start].split(b"\n")
        raise ValueError(
            f"{path}:{len(before)}: expected UTF-8, got 0x{error.object[error.start]:02x} "
            f"as byte {len(before[-1]) + 1} of the line ({error.reason})"
        ) from None


def read_lines(path: str | Path) -> list[Line]:
    """The lines of a text that are not blank; they end in LF or CRLF and in nothing else.

    A line or paragraph separator of Unicode, or a form feed, is a part of its line.

    Raises:
        ValueError, OSError: as :func:`read_text`.
    """
    return [
        Line(f"{path}:{number}", line.removesuffix("\r"))
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]
