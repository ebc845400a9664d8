"""Task files: a task as YAML, whether it is one of the general tasks or the user's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from saif_fast.tasks.judge import Judge
from saif_fast.tasks.task import SPLITS, Task, Wording
from saif_fast.tasks.verifiers import AnyVerifier
from saif_fast.text import read_lines, read_text

GENERAL = Path(__file__).parent / "general"
CONTENTS = Path(__file__).parent / "contents"


class ContentFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of contents, one per line, by split; relative to the task's file."""

    identify: str
    select: str
    report: str


class TaskFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a task's file says. The task's name is the file's name without its suffix."""

    verifier: AnyVerifier | Judge
    wordings: dict[str, list[str]]  # by language: en, fr, ...
    max_tokens: Annotated[int, Meta(ge=1)] = 64
    # Shorter replies cannot be judged: their end is what counts.
    min_tokens: Annotated[int, Meta(ge=1)] = 1
    # General tasks whose instructions are no negatives, because a reply can follow both.
    related: list[str] = []
    contents: ContentFiles | None = None  # None = those of the general tasks
    # A text that follows, made of any reply: "Thank you. {reply}". None = the verifier's rule.
    example: str | None = None

    def rewrite(self, reply: str) -> str | None:
        """Return a text that follows the instruction, made of any reply, or None."""
        if self.example is not None:
            return self.example.replace("{reply}", reply)
        return None if isinstance(self.verifier, Judge) else self.verifier.rewrite(reply)


def task_names() -> tuple[str, ...]:
    """Return the names of the general tasks, which any chat model can be steered towards."""
    return tuple(sorted(path.stem for path in GENERAL.glob("*.yaml")))


@functools.cache
def general_task(name: str) -> Task:
    """Return a general task by name; FileNotFoundError if there is none."""
    return load_task(GENERAL / f"{name}.yaml")


def load_task(path: str | Path) -> Task:
    """Read a task from a YAML file.

    Raises:
        ValueError: the file is ill-formed, or its splits share a content; the message begins with
            the path.
        OSError: the file, or one of its contents, cannot be read.
    """
    path = Path(path)
    read = _read(path)
    unknown = sorted(set(read.related) - set(task_names()))
    if unknown:
        raise ValueError(
            f"{path}: related: expected general tasks, {', '.join(task_names())}, "
            f"got {unknown[0]!r}"
        )
    wordings = tuple(
        Wording(language, text) for language, texts in read.wordings.items() for text in texts
    )
    own = {wording.text for wording in wordings}
    others = [
        texts
        for name, texts in general_wordings().items()
        if name not in read.related and not own & set(texts)
    ]
    try:
        return Task(
            name=path.stem,
            wordings=wordings,
            scorer=read.verifier.scorer([wording.text for wording in wordings]),
            **_contents(path, read.contents),
            neutral=neutral_sentences(),
            others=tuple(text for texts in others for text in texts),
            max_tokens=read.max_tokens,
            min_tokens=min(read.min_tokens, read.max_tokens),
            rewrite=read.rewrite,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@functools.cache
def neutral_sentences() -> tuple[str, ...]:
    """Return sentences that ask for nothing, for negatives of any task."""
    return _lines(CONTENTS / "neutral.txt")


@functools.cache
def general_wordings() -> Mapping[str, tuple[str, ...]]:
    """Return the wordings of every general task, by its name."""
    return {
        name: tuple(
            text for texts in _read(GENERAL / f"{name}.yaml").wordings.values() for text in texts
        )
        for name in task_names()
    }


def _read(path: Path) -> TaskFile:
    try:
        return msgspec.yaml.decode(read_text(path), type=TaskFile)
    # A line break within a message of YAML's parser would make two sentences of it.
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


@functools.cache
def _general_contents() -> Mapping[str, tuple[str, ...]]:
    return {split: _lines(CONTENTS / f"{split}.txt") for split in SPLITS}


def _contents(path: Path, files: ContentFiles | None) -> Mapping[str, tuple[str, ...]]:
    if files is None:
        return _general_contents()
    return {split: _lines(path.parent / getattr(files, split)) for split in SPLITS}


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.text.strip() for line in read_lines(path))
