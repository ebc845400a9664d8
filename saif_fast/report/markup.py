"""HTML that is built of elements, so that no text from outside can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

_VOID = frozenset({"br", "meta"})


class Html(str):
    """Markup. Only this module makes it of other text, and only after escaping that text."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child]"


def tag(name: str, /, *children: Child, **attributes: str | int | None) -> Html:
    """Make an element.

    Args:
        name: the element's name.
        children: what it contains: text, which is escaped; markup; or any of these in a list.
        attributes: its attributes, which are escaped. An underscore at the end of a name is left
            out, another one becomes a hyphen. None leaves the attribute out.

    Examples:
        >>> tag("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"</{name}>"
    return Html(f"<{name}{written}>{joined(*children)}{end}")


def joined(*children: Child) -> Html:
    """Join text, which is escaped, and markup."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(Html(html.escape(child)))
        else:
            parts.append(joined(*child))
    return Html("".join(parts))


def raw(name: str, content: str, /, **attributes: str | int | None) -> Html:
    """Make a ``script`` or ``style`` element, whose content browsers take as it is.

    Raises:
        ValueError: the content would end the element.
    """
    if f"</{name}" in content.lower() or "<!--" in content:
        raise ValueError(f"{name}: expected content that does not end the element, got '</{name}'")
    opening = tag(name, **attributes).removesuffix(f"</{name}>")
    return Html(f"{opening}{content}</{name}>")
