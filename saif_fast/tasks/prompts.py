"""Prompts: a content and an instruction in one user's turn, before the chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

Position = Literal["post", "pre"]
POSITIONS: tuple[Position, ...] = get_args(Position)

# Turns a content, and an instruction if the prompt is to have one, into the text the model reads.
Prompter: TypeAlias = Callable[[str, str | None], str]


def render(content: str, instruction: str | None = None, position: Position = "post") -> str:
    """Return the user's turn: the content, with the instruction after or before it."""
    if position not in POSITIONS:
        raise ValueError(f"position: expected 'post' or 'pre', got {position!r}")
    if instruction is None:
        return content
    parts = (content, instruction) if position == "post" else (instruction, content)
    return " ".join(parts)
