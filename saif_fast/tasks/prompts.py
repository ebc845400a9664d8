"""How a content and an instruction become one user turn; the chat template does the rest."""

from __future__ import annotations

from typing import Literal, get_args

Position = Literal["post", "pre"]
POSITIONS: tuple[Position, ...] = get_args(Position)


def render(content: str, instruction: str | None = None, position: Position = "post") -> str:
    """The user's text: the content, with the instruction after ("post") or before it ("pre")."""
    if position not in POSITIONS:
        raise ValueError(f"position: expected 'post' or 'pre', got {position!r}")
    if instruction is None:
        return content
    parts = (content, instruction) if position == "post" else (instruction, content)
    return " ".join(parts)
