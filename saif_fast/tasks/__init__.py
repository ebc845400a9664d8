"""Tasks: instructions to steer towards, contents to try them on, and scorers of the replies."""

from __future__ import annotations

import importlib

from saif_fast.tasks.embedded import embedded_task, embedded_task_names
from saif_fast.tasks.prompts import POSITIONS, Position, Prompter, render
from saif_fast.tasks.scorers import Score, Scorer
from saif_fast.tasks.task import SPLITS, Split, Task, Wording
from saif_fast.tasks.task_file import general_task, load_task, task_names

__all__ = [
    "POSITIONS",
    "SPLITS",
    "Position",
    "Prompter",
    "Score",
    "Scorer",
    "Split",
    "Task",
    "Wording",
    "embedded_task_names",
    "get_task",
    "is_task",
    "load_task",
    "render",
    "task_names",
]

EMBEDDED = "embedded:"
SUFFIXES = (".yaml", ".yml")


def is_task(text: str) -> bool:
    """Return whether ``text`` has the form of a task's name, and not of an instruction."""
    module, colon, attribute = text.partition(":")
    own = bool(colon) and attribute.isidentifier() and module.replace(".", "_").isidentifier()
    return own or text.endswith(SUFFIXES) or text in task_names()


def get_task(name: str) -> Task:
    """Return a task by name.

    ``NAME`` is a general task, for any chat model. ``embedded:NAME`` is one of the embedded
    model's. ``PATH.yaml`` and ``module:attribute`` are the user's own.

    Raises:
        ValueError: there is no such task, its file is ill-formed, or the attribute is no ``Task``.
        OSError: the file cannot be read.
    """
    if name in task_names():
        return general_task(name)
    if name.startswith(EMBEDDED):
        return embedded_task(name.removeprefix(EMBEDDED))
    if name.endswith(SUFFIXES):
        return load_task(name)
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(
            f"task: expected one of {', '.join(task_names())}, 'PATH.yaml' or 'module:attribute', "
            f"got {name!r}"
        )
    try:
        task = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"task: expected an importable Task at {name!r}, got {error}") from error
    if not isinstance(task, Task):
        raise ValueError(f"task: expected a Task at {name!r}, got {type(task).__name__}")
    return task
