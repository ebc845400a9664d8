"""The verifier of a reply's language."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Of words in a run: fewer are often taken for a related language, more hide a change of language.
WINDOW, SHORTEST = 5, 3
_PIECE_END = re.compile(r"[.!?:;\n]+")


class Language(Verifier, frozen=True, tag="language"):
    """The reply is in ``language``, an ISO 639-1 code, throughout.

    The whole reply must be, and ``share`` of all runs of five words within its sentences. It must
    have ``least_words`` different words, since one word over and over is no language.

    A cut reply counts.
    """

    language: str
    least_words: Annotated[int, Meta(ge=1)] = 4
    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.9

    def __post_init__(self) -> None:
        if self.language not in CODES:
            raise ValueError(f"language: expected one of {', '.join(CODES)}, got {self.language!r}")

    def holds(self, reply: str) -> bool:
        said = words(reply)
        if len({word.casefold() for word in said}) < self.least_words:
            return False
        runs = _runs(reply)
        found = sum(identify(run) == self.language for run in runs)
        return identify(" ".join(said)) == self.language and found >= self.share * len(runs)


# The languages that a reply is taken for. Rare ones would draw short texts to them.
CODES = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "ru", "sv", "tr", "ar")


def _runs(reply: str) -> list[str]:
    """Return the runs of words within each sentence or line; pieces of a word or two have none."""
    pieces = [words(piece) for piece in _PIECE_END.split(reply)]
    return [
        " ".join(piece[i : i + WINDOW])
        for piece in pieces
        if len(piece) >= SHORTEST
        for i in range(max(1, len(piece) - WINDOW + 1))
    ]


@functools.cache
def identify(text: str) -> str:
    """Return the code of the language that the text is most likely in."""
    language, _ = _identifier().classify(text)
    return str(language)


@functools.cache
def _identifier() -> LanguageIdentifier:
    """Load the identifier: a second, on first use."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(CODES)
    return identifier
