"""Reading of text files: UTF-8, with or without a byte order mark, LF or CRLF."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

STDIN = "-"


class Line(NamedTuple):
    """A line without its end, and its place as messages name it."""

    place: str  # FILE:NUMBER, counted from 1
    text: str


def read_text(path: str | Path) -> str:
    """Read a file, or stdin for ``-``, without a byte order mark at its beginning.

    Raises:
        ValueError: the content is not UTF-8; the message begins with path and line.
        OSError: the file cannot be read.
    """
    data = sys.stdin.buffer.read() if str(path) == STDIN else Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts in error.object, which is the data without the byte order mark.
        before = error.object[: error.start].split(b"\n")
        raise ValueError(
            f"{path}:{len(before)}: expected UTF-8, got 0x{error.object[error.start]:02x} "
            f"as byte {len(before[-1]) + 1} of the line ({error.reason})"
        ) from None


def read_lines(path: str | Path) -> list[Line]:
    """Read the lines of a file, or of stdin for ``-``, that are not blank.

    Lines end in LF or CRLF only: a line or paragraph separator of Unicode, or a form feed, is a
    part of its line.

    Raises:
        ValueError, OSError: as :func:`read_text`.
    """
    return [
        Line(f"{path}:{number}", line.removesuffix("\r"))
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]
