"""Tasks: instructions to steer towards, contents to try them on, and scorers of the replies."""

from __future__ import annotations

import importlib

from saif_fast.tasks.builtin import builtin_task
from saif_fast.tasks.prompts import POSITIONS, Position, render
from saif_fast.tasks.scorers import Score, Scorer
from saif_fast.tasks.task import SPLITS, Split, Task, Wording
from saif_fast.tasks.wordings import WORDINGS

__all__ = [
    "POSITIONS",
    "SPLITS",
    "Position",
    "Score",
    "Scorer",
    "Split",
    "Task",
    "Wording",
    "get_task",
    "render",
    "task_names",
]


def task_names() -> tuple[str, ...]:
    """Return the names of the built-in tasks."""
    return tuple(WORDINGS)


def get_task(name: str) -> Task:
    """Return a built-in task by name, or the user's own as ``module:attribute``.

    Raises:
        ValueError: there is no such task, or the attribute is no ``Task``.
    """
    if name in WORDINGS:
        return builtin_task(name)
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(
            f"task: expected one of {', '.join(task_names())} or 'module:attribute', got {name!r}"
        )
    try:
        task = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"task: expected an importable Task at {name!r}, got {error}") from error
    if not isinstance(task, Task):
        raise ValueError(f"task: expected a Task at {name!r}, got {type(task).__name__}")
    return task
