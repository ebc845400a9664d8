"""``saif tasks``: the tasks that a model can be steered towards, or all about one of them."""

from __future__ import annotations

import inspect
import itertools
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from saif_fast.cli.app import out
from saif_fast.cli.loading import task_for, tasks_for
from saif_fast.tasks import SPLITS, Scorer, Task
from saif_fast.tasks.judge import Judged
from saif_fast.tasks.verifiers import Verified

_WIDEST = 36  # characters of a verifier in the table


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="A task's name, PATH.yaml or 'module:attribute'; all tasks."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="'embedded' for the embedded model's tasks.", show_default="any")
    ] = "any",
) -> None:
    """List the tasks, or show one with its wordings and what its verifier asks for."""
    if name is None:
        _show_all(tasks_for(model))
    else:
        _show(task_for(model, name))


def _show_all(listed: list[Task]) -> None:
    table = Table(title=f"{len(listed)} tasks", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("instruction")
    table.add_column("verifier", no_wrap=True, overflow="ellipsis", max_width=_WIDEST)
    for column in ("wordings", "contents"):
        table.add_column(column, justify="right")
    for task in listed:
        contents = sum(len(task.contents(split)) for split in SPLITS)
        wording, verifier = escape(task.wordings[0].text), escape(_described(_rule(task.scorer)))
        table.add_row(task.name, wording, verifier, str(len(task.wordings)), str(contents))
    out.print(table)


def _show(task: Task) -> None:
    rule = _rule(task.scorer)
    sizes = ", ".join(f"{len(task.contents(split))} to {split}" for split in SPLITS)
    lines = [
        f"task: {task.name}",
        f"verifier: {_described(rule)}",
        *_meaning(rule),
        f"tokens: {task.max_tokens}",
        f"contents: {sizes}",
    ]
    for language, wordings in itertools.groupby(task.wordings, lambda each: each.language):
        lines += [f"wordings, {language}:", *(f"  {wording.text}" for wording in wordings)]
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _rule(scorer: Scorer) -> Any:
    """Return what a scorer goes by: its verifier or judge, or itself."""
    if isinstance(scorer, Verified):
        return scorer.verifier
    return scorer.judge if isinstance(scorer, Judged) else scorer


def _described(rule: Any) -> str:
    """Return the kind of a rule, and its arguments that are not the usual ones."""
    if not isinstance(rule, msgspec.Struct):
        return str(getattr(rule, "__name__", type(rule).__name__))
    fields = msgspec.to_builtins(rule)
    kind = fields.pop("kind")
    return " ".join([kind, *(f"{name}={value}" for name, value in fields.items())])


def _meaning(rule: Any) -> list[str]:
    """Return the paragraphs of a rule's docstring, each on one line."""
    paragraphs = (inspect.getdoc(rule) or "").replace("``", "").split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs]
