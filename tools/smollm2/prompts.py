"""Chat prompts to train the SAEs of SmolLM2 on, made of ``prompts.toml``; most have an instruction.

Requests and instructions are combined at random, from a seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TypedDict

import msgspec

__all__ = ["Message", "chat_prompts"]

INSTRUCTED = 0.6  # share of the prompts that carry an instruction
FOREIGN = 0.12  # share of the prompts whose request is not in English
OWN_SYSTEM = 0.15  # share of the instructions that are in the system message
BEFORE = 0.25  # share of the other instructions that are in front of the request


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


class _Requests(msgspec.Struct, forbid_unknown_fields=True):
    language: str
    templates: list[str]
    subjects: list[str]


class _Prompts(msgspec.Struct, forbid_unknown_fields=True):
    instructions: list[list[str]]  # each in several wordings
    requests: list[_Requests]


_PROMPTS = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=_Prompts)
_ENGLISH, *_OTHERS = _PROMPTS.requests
_FOREIGN = [t.format(subject) for o in _OTHERS for t in o.templates for subject in o.subjects]


def chat_prompts(count: int, seed: int) -> list[list[Message]]:
    """Return ``count`` chats, each up to the model's reply."""
    rng = random.Random(seed)
    return [_chat(rng) for _ in range(count)]


def _chat(rng: random.Random) -> list[Message]:
    if rng.random() < FOREIGN:
        request = rng.choice(_FOREIGN)
    else:
        request = rng.choice(_ENGLISH.templates).format(rng.choice(_ENGLISH.subjects))
    if rng.random() >= INSTRUCTED:
        return [Message(role="user", content=request)]
    instruction = rng.choice(rng.choice(_PROMPTS.instructions))
    if rng.random() < OWN_SYSTEM:
        return [
            Message(role="system", content=instruction),
            Message(role="user", content=request),
        ]
    before = rng.random() < BEFORE
    user = f"{instruction} {request}" if before else f"{request} {instruction}"
    return [Message(role="user", content=user)]
