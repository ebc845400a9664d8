"""Text files, whoever wrote them: every editor's UTF-8 gives the same lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from saif_fast.text import read_lines, read_text

BOM = b"\xef\xbb\xbf"
LINES = ["Réponds en français.", "one\u2028line\u2029still\x0b\x0c\x85\x1c", "  the last  "]


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
def test_lines_are_those_that_were_written(
    tmp_path: Path, mark: bytes, end: str, last: bool
) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(mark + end.join(LINES + [""] * last).encode())
    assert [line.text for line in read_lines(path)] == LINES


def test_a_line_knows_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(BOM + b"\n  \r\na\n\nb")
    assert read_lines(path) == [(f"{path}:3", "a"), (f"{path}:5", "b")]


def test_only_the_mark_at_the_beginning_is_one(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeffa\ufeffb", encoding="utf-8")
    assert read_text(path) == "a\ufeffb"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"ab\ncd\xff", ":2: expected UTF-8, got 0xff as byte 3 of the line (invalid start byte)"),
        (BOM + b"\xffe", ":1: expected UTF-8, got 0xff as byte 1 of the line"),
        ("naïve".encode("latin-1"), ":1: expected UTF-8, got 0xef as byte 3 of the line"),
        ("a".encode("utf-16"), ":1: expected UTF-8, got 0xff as byte 1"),
        (b"a\r\nb\r\n\xe2\x80", ":3: expected UTF-8, got 0xe2 as byte 1 of the line (unexpected"),
    ],
    ids=["second line", "after a mark", "latin-1", "utf-16", "cut short"],
)
def test_other_encodings_are_named_with_their_place(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_text(path)
    assert str(caught.value).startswith(f"{path}{says}")
