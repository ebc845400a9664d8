"""The embedded model's tasks: one per format of the corpus, all on the same contents."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from saif_fast.tasks.embedded.corpus import FORMATS, Scene, draw_scenes, parse, vocabulary
from saif_fast.tasks.embedded.lexicon import KEYWORD, NOUNS
from saif_fast.tasks.embedded.scorers import AnyWordFrom, ExactTarget, Form, Repeated, WordsFrom
from saif_fast.tasks.embedded.wordings import NEUTRAL, WORDINGS
from saif_fast.tasks.task import Task
from saif_fast.tasks.verifiers import Contains, Json, UpperCase, WordCount

N_IDENTIFY, N_SELECT, N_REPORT = 220, 60, 200
_SPLIT_SEED = 2025


@functools.cache
def _forms() -> dict[str, Form]:
    """Return the forms of the replies by task. Built on first use: the vocabularies take 60 ms."""
    return {
        "french": WordsFrom(vocabulary("french")),
        "german": WordsFrom(vocabulary("german")),
        "upper_case": UpperCase(least=1).holds,
        "json": Json().holds,
        "one_word": WordCount(least=1, most=1).holds,
        "keyword": Contains((KEYWORD,)).holds,
        "twice": Repeated(),
        "past": AnyWordFrom(
            frozenset(noun.past for noun in NOUNS), frozenset(noun.verb for noun in NOUNS)
        ),
    }


@functools.cache
def split_scenes() -> tuple[tuple[Scene, ...], tuple[Scene, ...], tuple[Scene, ...]]:
    """Draw the scenes to identify (open to training), select and report (both held out)."""
    rng = random.Random(_SPLIT_SEED)
    identify = draw_scenes(rng, N_IDENTIFY, held_out=False)
    unseen = draw_scenes(rng, N_SELECT + N_REPORT, held_out=True)
    return tuple(identify), tuple(unseen[:N_SELECT]), tuple(unseen[N_SELECT:])


def embedded_task_names() -> tuple[str, ...]:
    """Return the names of the embedded model's tasks, as they are with ``--model embedded``."""
    return tuple(WORDINGS)


@functools.cache
def embedded_task(name: str) -> Task:
    """Return one of the embedded model's tasks; ValueError if there is none of this name."""
    if name not in WORDINGS:
        raise ValueError(
            f"task: expected one of the embedded model's, {', '.join(WORDINGS)}, got {name!r}"
        )
    identify, select, report = (
        tuple(scene.content for scene in scenes) for scenes in split_scenes()
    )
    return Task(
        name=name,
        wordings=WORDINGS[name],
        scorer=ExactTarget(_target(FORMATS[name]), _forms()[name]),
        identify=identify,
        select=select,
        report=report,
        neutral=NEUTRAL,
        others=tuple(
            wording.text
            for other, wordings in WORDINGS.items()
            if other != name
            for wording in wordings
        ),
    )


def _target(reply: Callable[[Scene], str]) -> Callable[[str], str]:
    return lambda content: reply(parse(content))
