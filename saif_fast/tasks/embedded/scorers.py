"""The scorer of the embedded model's tasks, and forms that only its small corpus has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from saif_fast.tasks.scorers import Score, words

# Says whether a reply has a form, whatever it says.
Form = Callable[[str], bool]


@dataclass(frozen=True)
class ExactTarget:
    """Strict: the reply is ``target(content)``. Loose: it has the form, whatever is said."""

    target: Callable[[str], str]
    form: Form

    def __call__(self, content: str, reply: str) -> Score:
        exact = reply.strip() == self.target(content)
        return Score(exact, exact or self.form(reply))


@dataclass(frozen=True)
class Repeated:
    """The form of a text that is said two times."""

    def __call__(self, reply: str) -> bool:
        said = reply.split()
        half = len(said) // 2
        return half > 0 and said == said[:half] * 2


@dataclass(frozen=True)
class WordsFrom:
    """The form of ``least`` words or more, all in ``vocabulary`` (lower case)."""

    vocabulary: frozenset[str] = field(repr=False)
    least: int = 4

    def __call__(self, reply: str) -> bool:
        said = words(reply.lower())
        return len(said) >= self.least and self.vocabulary.issuperset(said)


@dataclass(frozen=True)
class AnyWordFrom:
    """The form of a word or more of ``vocabulary`` (lower case), and none of ``without``."""

    vocabulary: frozenset[str] = field(repr=False)
    without: frozenset[str] = field(repr=False)

    def __call__(self, reply: str) -> bool:
        said = set(words(reply.lower()))
        return bool(said & self.vocabulary) and not said & self.without
