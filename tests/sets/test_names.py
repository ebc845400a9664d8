"""What sets may be called, and what a message says there is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from saif_fast.names import check_name, completed, is_name, listed, name_of, set_name
from saif_fast.request import parse_request

LEGAL = ["a", "2nd", "French_1.5-b", "a" * 64]
ILLEGAL = [
    *("", " french", "french\n", "french ", "fr ench", "französisch", "._french"),
    *("-x", ".x", "_x", "a/b", "..", "french (1)", "a\0b", "a\x1bb", "a" * 65),
]


@pytest.mark.parametrize("name", LEGAL)
def test_one_grammar_for_files_and_requests(name: str) -> None:
    assert check_name(name) == name
    assert name_of(f"{name}.safetensors") == name
    asked = parse_request({"saif": f"{name}*0.5"}, available=[name])
    assert asked is not None and asked.sets == ((name, 0.5),)


@pytest.mark.parametrize("name", ILLEGAL, ids=ascii)
def test_anything_else_is_no_name_anywhere(name: str) -> None:
    assert not is_name(name) and name_of(f"{name}.safetensors") is None
    with pytest.raises(ValueError, match="set name: expected a letter or digit, then"):
        check_name(name)


@pytest.mark.parametrize("file", ["french", "french.pt", "french.SAFETENSORS", ".safetensors"])
def test_a_file_without_the_suffix_is_no_set(file: str) -> None:
    assert name_of(file) is None


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("sets/french.safetensors", "sets/french.safetensors"),
        ("sets/french", "sets/french.safetensors"),
        ("v1.5", "v1.5.safetensors"),
    ],
)
def test_a_file_to_write_is_completed(asked: str, written: str) -> None:
    assert completed(Path(asked)) == Path(written)


@pytest.mark.parametrize(
    "asked", ["sets/my french", "._x.safetensors", "größe.safetensors", "a" * 65]
)
def test_a_file_that_nothing_could_read_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=r"expected a file NAME\.safetensors, .*, got"):
        completed(Path(asked))


def test_a_short_list_is_given_whole() -> None:
    assert listed([]) == "none"
    assert listed(["b", "a"], "z") == "a, b"


MANY = [f"user-{i:05d}" for i in range(10_000)]


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("frensh", "french"),
        ("French", "french"),
        ("fench", "french"),
        ("frenchh", "french"),
        ("rfench", "french"),
        ("usr-04711", "user-04711"),
        ("user-x4711", "user-04711"),
    ],
)
def test_of_many_names_those_like_the_one_asked_for_are_given(asked: str, near: str) -> None:
    text = listed([*MANY, "french", "german"], asked)
    names = text.partition(" and ")[0].split(", ")
    assert near in names and len(names) <= 10
    assert text.endswith(f" and {10_002 - len(names):,} more") and len(text) < 250


def test_of_many_names_none_of_which_is_like_it_some_are_given() -> None:
    text = listed(MANY, "zzz")
    assert text == ", ".join(MANY[:10]) + " and 9,990 more"
    assert listed(MANY) == text


def test_an_unknown_name_among_ten_thousand_is_soon_answered() -> None:
    # It is looked for while an API server's event loop waits.
    asked, began = ["user-1", "a" * 64, "user-00123x", "1"], time.process_time()
    for name in asked:
        listed(MANY, name)
    assert (time.process_time() - began) / len(asked) < 0.03


class _Unreadable(Sequence[str]):
    def __getitem__(self, index: object) -> str:  # type: ignore[override]
        raise ValueError("the set directory cannot be read (Permission denied)")

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        raise ValueError("the set directory cannot be read (Permission denied)")


def test_a_list_in_a_message_raises_nothing() -> None:
    assert listed(_Unreadable(), "a") == "the set directory cannot be read (Permission denied)"
    with pytest.raises(ValueError, match=r"available sets: the set directory cannot be read"):
        parse_request({"saif": ""}, available=_Unreadable())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("french", "french"),
        ("my:task", "my_task"),
        ("5 words", "5_words"),
        ("_x", "set__x"),
        ("", "set_"),
    ],
)
def test_set_names_are_legal(text: str, name: str) -> None:
    assert set_name(text) == check_name(name)


def test_long_set_names_are_legal_and_told_apart() -> None:
    names = [set_name(f"{'module.' * 10}task:{i}") for i in range(2)]
    assert [check_name(name) for name in names] == names and names[0] != names[1]
