"""The base of verifiers, and the scorer that a verifier makes: strict and loose as IFEval has them.

IFEval: arXiv 2311.07911.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from saif_fast.tasks.scorers import Score, Scorer

# Punctuation that ends a sentence, with what may follow it: quotation marks, brackets, emphasis.
_ENDED = re.compile(r"[.!?…][\"'”’»)\]*_]*$")


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

    def scorer(self, wordings: Sequence[str]) -> Scorer:
        """Return the scorer of a task whose instruction has these wordings."""
        return Verified(self, tuple(wordings))


@dataclass(frozen=True)
class Verified:
    """A scorer by a verifier.

    Strict: the reply as it is passes. Loose: one of its :func:`variants` does. What the reply only
    echoes, a wording of the instruction or the content, does not count: without it, too, the reply
    must pass.
    """

    verifier: Verifier
    wordings: tuple[str, ...] = field(repr=False)

    def __call__(self, content: str, reply: str) -> Score:
        echoes = (content, *self.wordings)
        return Score(
            self._passes(reply, echoes), any(self._passes(each, echoes) for each in variants(reply))
        )

    def _passes(self, reply: str, echoes: Sequence[str]) -> bool:
        own = without(reply, echoes)
        return self.verifier.holds(reply) and (own == reply or self.verifier.holds(own))


def variants(reply: str) -> list[str]:
    """Return the reply and what is left of it without first line, last line and asterisks."""
    lines = reply.strip().split("\n")
    cuts = (reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]


def without(reply: str, echoes: Sequence[str]) -> str:
    """Return the reply without the texts in ``echoes``, in whatever case and spacing."""
    patterns = (r"\s+".join(map(re.escape, echo.split())) for echo in echoes)
    return re.sub("|".join(filter(None, patterns)), "", reply, flags=re.IGNORECASE)


def ended(text: str) -> bool:
    """Return whether the text ends as a sentence does, and was not cut."""
    return _ENDED.search(text.rstrip()) is not None
