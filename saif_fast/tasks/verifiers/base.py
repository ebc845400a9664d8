"""The base of verifiers, and the scorer that a verifier makes: strict and loose as IFEval has them.

IFEval: arXiv 2311.07911.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from saif_fast.tasks.scorers import Score, Scorer, words

# Punctuation that ends a sentence, with what may follow it: quotation marks, brackets, emphasis.
_ENDED = re.compile(r"[.!?…][\"'”’»)\]*_]*$")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s)(?!\s+[a-z])|\n")
# Periods of initials, abbreviations and the numbers of items.
_NO_END = re.compile(r"(?:^|\s)(?:[A-Z]|\d\d?|Mr|Mrs|Ms|Dr|St|vs|e\.g|i\.e)\.$")


class Verifier(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", omit_defaults=True
):
    """A rule for replies. It never needs a target text, and an empty reply never passes.

    A reply may be cut in the middle, since a model is stopped after ``max_tokens``; each class says
    what it does then.
    """

    def holds(self, reply: str) -> bool:
        """Return whether the reply, as it is, follows the instruction."""
        raise NotImplementedError

    def rewrite(self, reply: str) -> str | None:
        """Return a text that follows the instruction, made of any reply; None = there is no rule.

        Reply and text differ in what is asked for and in little else, which tells more of an
        instruction than a model's own replies do, where it seldom follows.
        """
        return None

    def scorer(self, wordings: Sequence[str]) -> Scorer:
        """Return the scorer of a task whose instruction has these wordings."""
        return Verified(self, tuple(wordings))


@dataclass(frozen=True)
class Verified:
    """A scorer by a verifier.

    Strict: the reply as it is passes. Loose: one of its :func:`variants` does. An echo does not
    count: without the instruction's wordings the reply must pass too, and without the content there
    must be words left.
    """

    verifier: Verifier
    wordings: tuple[str, ...] = field(repr=False)

    def __call__(self, content: str, reply: str) -> Score:
        return Score(
            self._passes(content, reply), any(self._passes(content, v) for v in variants(reply))
        )

    def _passes(self, content: str, reply: str) -> bool:
        if not self.verifier.holds(reply):
            return False
        own = without(reply, self.wordings)
        return bool(words(without(own, [content]))) and (own == reply or self.verifier.holds(own))


def variants(reply: str) -> list[str]:
    """Return the reply and what is left of it without first line, last line and asterisks."""
    lines = reply.strip().split("\n")
    cuts = (reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]


def without(reply: str, echoes: Sequence[str]) -> str:
    """Return the reply without the texts in ``echoes``, in whatever case and spacing."""
    patterns = (r"\s+".join(map(re.escape, echo.split())) for echo in echoes)
    return re.sub("|".join(filter(None, patterns)), "", reply, flags=re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text. A line break ends a sentence; empty lines are none."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start : end.end()]
        if not _NO_END.search(piece):
            found.append(piece)
            start = end.end()
    return [each.strip() for each in (*found, text[start:]) if each.strip()]


def ended(text: str) -> bool:
    """Return whether the text ends as a sentence does, and was not cut."""
    return _ENDED.search(text.rstrip()) is not None
