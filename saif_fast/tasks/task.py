"""The type of a task: an instruction in several wordings, contents in three splits, a scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from saif_fast.tasks.scorers import Scorer

Split = Literal["identify", "select", "report"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Wording:
    """One way to give the instruction. ``trained`` is False if the model never saw it."""

    language: str
    text: str
    trained: bool = True


@dataclass(frozen=True)
class Task:
    """An instruction to be identified, tuned and reported on three disjoint sets of contents.

    ``neutral`` are sentences that ask for nothing, and ``others`` are other instructions. Both are
    appended to negatives; otherwise any appended sentence would tell positives and negatives apart.

    Raises:
        ValueError: there is no wording, a split is empty, or two splits share a content.
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
    min_tokens: int = 1  # a search that tries shorter replies cannot judge them
    # Makes a text that follows of any reply, or nothing.
    rewrite: Callable[[str], str | None] | None = field(default=None, repr=False, compare=False)

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

    @property
    def main_wordings(self) -> tuple[str, ...]:
        """The texts of the wordings in the language of the first one; of all if it is alone in it.

        A small model answers in the language of the wording, and follows wordings of another one
        than the content's less often.
        """
        language = self.wordings[0].language
        found = tuple(each.text for each in self.wordings if each.language == language)
        return found if len(found) > 1 else tuple(each.text for each in self.wordings)

    def contents(self, split: Split) -> tuple[str, ...]:
        """Return the contents of a split; ValueError if there is no such split."""
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        contents: tuple[str, ...] = getattr(self, split)
        return contents
