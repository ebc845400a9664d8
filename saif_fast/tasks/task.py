"""What a task is: instructions in several wordings, contents in three splits, and a scorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from saif_fast.tasks.scorers import Scorer

Split = Literal["identify", "select", "report"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Wording:
    """One way to give the instruction; `trained` is False where the model never saw it."""

    language: str
    text: str
    trained: bool = True


@dataclass(frozen=True)
class Task:
    """An instruction to be identified, tuned and reported on three disjoint sets of contents.

    `neutral` are sentences that ask for nothing and `others` different instructions: both are
    appended to negatives, or any appended sentence would tell positives and negatives apart.
    """

    name: str
    wordings: tuple[Wording, ...]
    scorer: Scorer
    identify: tuple[str, ...]
    select: tuple[str, ...]
    report: tuple[str, ...]
    neutral: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    max_tokens: int = 24

    def __post_init__(self) -> None:
        if not self.wordings:
            raise ValueError(f"task {self.name!r}: expected at least one wording, got none")
        owner: dict[str, str] = {}
        for split in SPLITS:
            contents = self.contents(split)
            if not contents:
                raise ValueError(f"task {self.name!r}: expected contents to {split}, got none")
            for content in contents:
                if content in owner:
                    raise ValueError(
                        f"task {self.name!r}: expected disjoint contents, got {content!r} "
                        f"in {owner[content]} and in {split}"
                    )
                owner[content] = split

    def contents(self, split: Split) -> tuple[str, ...]:
        """The contents of a split; ValueError for any other name."""
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        contents: tuple[str, ...] = getattr(self, split)
        return contents
