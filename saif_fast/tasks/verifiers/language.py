"""The verifier of a reply's language."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

WINDOW = 5  # words: fewer are often taken for a related language


class Language(Verifier, frozen=True, tag="language"):
    """The reply is in ``language``, an ISO 639-1 code, throughout.

    The whole reply must be, and ``share`` of all runs of five words. It must have ``least_words``
    words, and a third of them different: one word over and over is no language. A cut reply counts.
    """

    language: str
    least_words: Annotated[int, Meta(ge=1)] = 4
    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.9

    def __post_init__(self) -> None:
        if self.language not in CODES:
            raise ValueError(f"language: expected one of {', '.join(CODES)}, got {self.language!r}")

    def holds(self, reply: str) -> bool:
        said = words(reply)
        if len(said) < self.least_words or 3 * len({w.casefold() for w in said}) < len(said):
            return False
        runs = [said[i : i + WINDOW] for i in range(max(1, len(said) - WINDOW + 1))]
        found = sum(identify(" ".join(run)) == self.language for run in runs)
        return identify(" ".join(said)) == self.language and found >= self.share * len(runs)


# The languages that a reply is taken for. Rare ones would draw short texts to them.
CODES = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "ru", "sv", "tr", "ar")


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
