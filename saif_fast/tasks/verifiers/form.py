"""Verifiers of a reply's form: case, lists, JSON, marks around and between its parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from saif_fast.tasks.scorers import words
from saif_fast.tasks.verifiers.base import Verifier, ended, sentences

# Items on lines of their own; Markdown's emphasis or heading may stand before a number.
_NUMBERED = re.compile(r"^[\s*#_]*(\d+)[.)][*_]*\s+(.*\S)", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*•–+][ \t]+(.*\S)", re.MULTILINE)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*(?:```)?", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<<([^<>\n]+)>>")
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»"}


class LowerCase(Verifier, frozen=True, tag="lower_case"):
    """The reply has ``least`` words or more, and none of its letters is upper case.

    A cut reply counts.
    """

    least: Annotated[int, Meta(ge=1)] = 3

    def holds(self, reply: str) -> bool:
        return len(words(reply)) >= self.least and reply != reply.upper() and not _upper(reply)

    def rewrite(self, reply: str) -> str:
        return reply.lower()


class UpperCase(Verifier, frozen=True, tag="upper_case"):
    """The reply has ``least`` words or more, and none of its letters is lower case.

    A cut reply counts.
    """

    least: Annotated[int, Meta(ge=1)] = 3

    def holds(self, reply: str) -> bool:
        said = words(reply)
        lower = any(character.islower() for character in reply)
        return len(said) >= self.least and _upper(reply) and not lower

    def rewrite(self, reply: str) -> str:
        return reply.upper()


class NumberedList(Verifier, frozen=True, tag="numbered_list"):
    """The reply has lines that begin with 1., 2. and so on, ``least`` of them or more.

    The items must say something, and not all the same. A cut list is a list.
    """

    least: Annotated[int, Meta(ge=2)] = 2

    def holds(self, reply: str) -> bool:
        items: list[str] = []
        for number, text in _NUMBERED.findall(reply):
            if int(number) == len(items) + 1:
                items.append(text)
        return _is_list(items, self.least)

    def rewrite(self, reply: str) -> str:
        return "\n".join(f"{i}. {text}" for i, text in enumerate(sentences(reply), 1))


class Bullets(Verifier, frozen=True, tag="bullets"):
    """The reply has lines that begin with a bullet, ``least`` of them or more.

    The items must say something, and not all the same. A cut list is a list.
    """

    least: Annotated[int, Meta(ge=2)] = 2

    def holds(self, reply: str) -> bool:
        return _is_list(_BULLET.findall(reply), self.least)

    def rewrite(self, reply: str) -> str:
        return "\n".join(f"- {text}" for text in sentences(reply))


class Json(Verifier, frozen=True, tag="json"):
    """The whole reply is one JSON object that says something; a Markdown fence around it may be.

    With ``cut``, a reply that stops within the object counts too, if what is there is right and one
    key has a value.
    """

    cut: bool = False

    def holds(self, reply: str) -> bool:
        text = reply.strip()
        fenced = _FENCE.fullmatch(text)
        value = _parse(fenced[1] if fenced else text, self.cut)
        return isinstance(value, dict) and any(words(str(leaf)) for leaf in _leaves(value))

    def rewrite(self, reply: str) -> str:
        return json.dumps({"answer": " ".join(reply.split())}, ensure_ascii=False)


class Quoted(Verifier, frozen=True, tag="quoted"):
    """The whole reply stands between double quotation marks, of English, German or French form.

    A reply that is cut within a sentence needs no closing mark.
    """

    least_words: Annotated[int, Meta(ge=1)] = 2

    def holds(self, reply: str) -> bool:
        text = reply.strip()
        closing = _QUOTES.get(text[:1])
        if closing is None or len(words(text)) < self.least_words:
            return False
        inner = text[1:]
        if inner.endswith(closing):
            inner = inner[:-1]
        elif ended(text):
            return False
        # The next mark within must open a quotation. A closing one ends ours too early.
        found = re.search(f'["{closing}]', inner)
        return found is None or inner[: found.start()][-1:].isspace()

    def rewrite(self, reply: str) -> str:
        return '"' + reply.strip().replace('"', "'") + '"'


class EndsWithQuestion(Verifier, frozen=True, tag="ends_with_question"):
    """The reply says something, and then its last sentence is a question.

    A cut reply fails, since its end is what was asked for: give such a task enough ``max_tokens``.
    """

    def holds(self, reply: str) -> bool:
        *before, last = sentences(reply) or [""]
        return last.rstrip("\"'”’»)]*_").endswith("?") and any(words(each) for each in before)

    def rewrite(self, reply: str) -> str:
        # The question has to come before the reply is cut.
        return " ".join([*sentences(reply)[:2], "Would you like to know more?"])


class Title(Verifier, frozen=True, tag="title"):
    """The reply has a title in double angle brackets, <<so>>, and words beside it.

    A cut reply counts, if the title is closed.
    """

    def holds(self, reply: str) -> bool:
        titles = [title for title in _TITLE.findall(reply) if words(title)]
        return bool(titles) and bool(words(_TITLE.sub("", reply)))

    def rewrite(self, reply: str) -> str:
        return f"<<{' '.join(words(reply)[:5])}>>\n\n{reply}"


class Separated(Verifier, frozen=True, tag="separated"):
    """The reply is ``count`` different texts with ``separator`` between each two.

    The last text may be cut.
    """

    separator: Annotated[str, Meta(min_length=1)] = "******"
    count: Annotated[int, Meta(ge=2)] = 2

    def holds(self, reply: str) -> bool:
        parts = [part.strip() for part in reply.strip().split(self.separator)]
        parts = [part for i, part in enumerate(parts) if part or 0 < i < len(parts) - 1]
        return (
            len(parts) == self.count
            and all(words(part) for part in parts)
            and len({part.casefold() for part in parts}) == self.count
        )

    def rewrite(self, reply: str) -> str:
        return f"\n{self.separator}\n".join(sentences(reply)[: self.count])


def _upper(text: str) -> bool:
    return any(character.isupper() for character in text)


def _is_list(items: list[str], least: int) -> bool:
    said = [" ".join(words(item)).casefold() for item in items]
    return sum(map(bool, said)) >= least and len(set(said)) > 1


def _parse(text: str, cut: bool) -> Any:
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return _parse_cut(text) if cut else None
    return value if end == len(text) else None


def _parse_cut(text: str) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value
