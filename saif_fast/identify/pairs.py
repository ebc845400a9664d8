"""Contrast pairs: one content with and without an instruction."""

from __future__ import annotations

import hashlib
import itertools
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from saif_fast.tasks import POSITIONS, Task, render
from saif_fast.text import read_lines

PairPosition = Literal["post", "pre", "both"]


class ContrastPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Two prompts that differ in the instruction: user's turns, before the chat template."""

    positive: str  # with the instruction
    negative: str  # without it
    group: str = ""  # the wording of the instruction
    content: str = ""  # what is asked for, apart from the instruction; "" = not known

    def __post_init__(self) -> None:
        if self.positive == self.negative:
            raise ValueError(f"expected two different prompts, got {self.positive!r} twice")


class ContrastPairs(msgspec.Struct, frozen=True):
    """Pairs of one instruction, and where they come from; ValueError if there are none."""

    pairs: tuple[ContrastPair, ...]
    wordings: tuple[str, ...] = ()
    position: str | None = None
    seed: int | None = None
    negatives: str = "given"  # their kinds
    places: tuple[str, ...] = ()  # place of each pair, FILE:LINE

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("pairs: expected at least one, got none")
        if len({pair.group for pair in self.pairs}) == 1:
            warnings.warn(
                "pairs: only one wording; latents may answer to it and not to the instruction",
                stacklevel=3,  # the caller of build_pairs or load_pairs
            )

    def name(self, index: int) -> str:
        """Return what an error calls the pair at ``index``."""
        return self.places[index] if self.places else f"pair {index}"

    @property
    def data_hash(self) -> str:
        """sha256 over the pairs in order."""
        return hashlib.sha256(msgspec.json.encode(self.pairs)).hexdigest()


def build_pairs(
    contents: Sequence[str],
    wordings: Sequence[str],
    *,
    position: PairPosition = "post",
    neutral: Sequence[str] = (),
    others: Sequence[str] = (),
    max_pairs: int | None = 256,
    seed: int = 0,
) -> ContrastPairs:
    """Combine contents, wordings and positions to pairs, with negatives of each kind in turn.

    A negative is the content alone, the content with a neutral sentence, or the content with
    another instruction. If all of them were the content alone, any appended sentence would tell
    the two sides apart.

    Args:
        contents: what is asked for, apart from the instruction.
        wordings: wordings of the instruction, two or more; each is a group of pairs.
        position: whether the instruction comes after the content, before it, or both are combined.
        neutral: sentences that ask for nothing, for negatives.
        others: other instructions, for negatives.
        max_pairs: number of pairs, drawn from all combinations; None = all.
        seed: seed of the draw.

    Raises:
        ValueError: the position is none of these, or there is nothing to combine.

    Examples:
        >>> pairs = build_pairs(
        ...     ["Tell me about cats.", "What is a fugue?"],
        ...     ["Answer in French.", "Please reply in French."],
        ...     neutral=["Thank you very much."],
        ...     others=["Answer in one word."],
        ... )
        >>> len(pairs.pairs)
        4
    """
    positions = [p for p in POSITIONS if position in (p, "both")]
    if not positions:
        raise ValueError(f"position: expected 'post', 'pre' or 'both', got {position!r}")
    combinations = list(itertools.product(contents, wordings, positions))
    random.Random(seed).shuffle(combinations)
    kinds: dict[str, Sequence[str | None]] = {"plain": [None], "neutral": neutral, "others": others}
    used = [name for name, sentences in kinds.items() if sentences]
    pairs = []
    for i, (content, wording, where) in enumerate(combinations[:max_pairs]):
        kind = kinds[used[i % len(used)]]
        sentence = kind[i // len(used) % len(kind)]
        positive, negative = render(content, wording, where), render(content, sentence, where)
        pairs.append(ContrastPair(positive, negative, group=wording, content=content))
    negatives = ", ".join(used[: len(pairs)])
    return ContrastPairs(tuple(pairs), tuple(wordings), position, seed, negatives)


def pairs_of(
    task: Task,
    wordings: Sequence[str] | None = None,
    *,
    max_pairs: int | None = 256,
    seed: int = 0,
) -> ContrastPairs:
    """Build pairs of a task's identify contents, as :func:`build_pairs`.

    Args:
        task: the task.
        wordings: some of its wordings; None = all.
        max_pairs: as in :func:`build_pairs`.
        seed: as in :func:`build_pairs`.

    Examples:
        >>> pairs = pairs_of(get_task("french"), seed=1)
    """
    return build_pairs(
        task.identify,
        [wording.text for wording in task.wordings] if wordings is None else wordings,
        neutral=task.neutral,
        others=task.others,
        max_pairs=max_pairs,
        seed=seed,
    )


def load_pairs(path: str | Path) -> ContrastPairs:
    """Read JSON lines ``{"positive": ..., "negative": ..., "group": ...}``.

    Raises:
        ValueError: there is none, or one is no pair; the message names the line.
    """
    found = {}
    for place, line in read_lines(path):
        try:
            found[place] = msgspec.json.decode(line, type=ContrastPair)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ValueError(f"{place}: {error}") from None
    if not found:
        raise ValueError(f"{path}: expected at least one pair, got none")
    groups = dict.fromkeys(pair.group for pair in found.values() if pair.group)
    return ContrastPairs(tuple(found.values()), wordings=tuple(groups), places=tuple(found))
