"""Verifiers: rules that tell from a reply alone whether it follows an instruction.

``AnyVerifier`` is the registry: a task's file names one of its classes by ``kind``, and gives the
class's fields as arguments.
"""

from __future__ import annotations

from saif_fast.tasks.verifiers.base import Verified, Verifier, variants
from saif_fast.tasks.verifiers.form import (
    Bullets,
    EndsWithQuestion,
    Json,
    LowerCase,
    NumberedList,
    Quoted,
    Separated,
    Title,
    UpperCase,
)
from saif_fast.tasks.verifiers.language import Language
from saif_fast.tasks.verifiers.length import Sentences, WordCount
from saif_fast.tasks.verifiers.wording import Contains, Lacks, Matches, PastTense

AnyVerifier = (
    Bullets
    | Contains
    | EndsWithQuestion
    | Json
    | Lacks
    | Language
    | LowerCase
    | Matches
    | NumberedList
    | PastTense
    | Quoted
    | Sentences
    | Separated
    | Title
    | UpperCase
    | WordCount
)

__all__ = [
    "AnyVerifier",
    "Bullets",
    "Contains",
    "EndsWithQuestion",
    "Json",
    "Lacks",
    "Language",
    "LowerCase",
    "Matches",
    "NumberedList",
    "PastTense",
    "Quoted",
    "Sentences",
    "Separated",
    "Title",
    "UpperCase",
    "Verified",
    "Verifier",
    "WordCount",
    "variants",
]
