"""``saif study``: the paper's studies, each a table and a sentence of verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table as RichTable

from saif_fast.cli.app import out, say
from saif_fast.cli.generate import RuntimeOption, pick_runtime
from saif_fast.cli.loading import (
    SaesOption,
    check_output,
    load_info,
    load_model,
    load_saes,
    names_for,
    task_for,
)
from saif_fast.cli.track import track_of
from saif_fast.evaluate.study import check_task
from saif_fast.evaluate.subject import Subject
from saif_fast.model_info import ModelInfo, check_sae
from saif_fast.runtime import find_runtime
from saif_fast.sae import SparseAutoencoder
from saif_fast.studies import (
    STUDIES,
    Budget,
    Share,
    StudyContext,
    StudyResult,
    chosen,
    run_studies,
    write_studies,
)
from saif_fast.studies.protocol import OneModel
from saif_fast.studies.registry import ALL
from saif_fast.studies.result import Cell
from saif_fast.tasks import SUFFIXES, Task, is_task

# Instructions that studies compare, of those that the model has: other kinds of replies each.
_HANDFUL = ("french", "numbered_list", "title", "upper_case", "json", "keyword")
_SEVERAL = 4
_DEFAULTS = Budget()

HELP = "\n\n".join(
    [
        "Run the paper's studies: is what it claims so on this model?",
        *(f"{study.name}: {study.about}." for study in STUDIES.values()),
    ]
)


def study(
    name: Annotated[str, typer.Argument(help=f"{ALL}, or one of {', '.join(STUDIES)}.")],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="Directory, Hugging Face name, 'embedded' or 'smollm2'; repeat it to compare.",
        ),
    ],
    sae: SaesOption,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the results as JSON.")
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            help="A task's name, PATH.yaml or 'module:attribute'; repeat it.",
            show_default="four tasks",
        ),
    ] = None,
    runtime: RuntimeOption = None,
    report: Annotated[
        int, typer.Option(min=1, help="Report contents per figure.")
    ] = _DEFAULTS.report,
    select: Annotated[
        int, typer.Option(min=1, help="Select contents per setting that is tried.")
    ] = _DEFAULTS.select,
    tokens: Annotated[
        int, typer.Option(min=1, help="Of a reply, unless the task needs more.")
    ] = _DEFAULTS.tokens,
    pairs: Annotated[
        int, typer.Option(min=2, help="Contrast pairs per instruction.")
    ] = _DEFAULTS.pairs,
    wordings: Annotated[
        int, typer.Option(min=1, help="Of each language, where wordings are compared.")
    ] = _DEFAULTS.wordings,
    draws: Annotated[int, typer.Option(min=1, help="Of random latents.")] = _DEFAULTS.draws,
    k: Annotated[int, typer.Option(min=1, max=60, help="Latents in SAIF's set.")] = _DEFAULTS.k,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = _DEFAULTS.seed,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Chat template; used where there is one."),
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Take an SAE of another model of this shape.")
    ] = False,
) -> None:
    """Run the paper's studies; the help is :data:`HELP`."""
    studies = chosen(name)
    budget = Budget(
        report=report,
        select=select,
        tokens=tokens,
        pairs=pairs,
        wordings=wordings,
        draws=draws,
        k=k,
        seed=seed,
    )
    if output is not None:
        check_output(output)
    first, *others = dict.fromkeys(model)
    tasks = {first: tasks_of(first, instruction or [])}
    tasks |= {each: shared_tasks(each, list(tasks[first][0])) for each in others}
    # Those that only read need no engine; the model that is loaded for reading is runtime enough.
    generates = not all(isinstance(each, OneModel) and each.reads_only for each in studies)
    chosen_runtime = pick_runtime(runtime) if generates else "transformers"
    find_runtime(chosen_runtime)  # refuse a missing runtime now, not after the models are loaded
    saes = load_saes(sae)
    infos = {each: load_info(each) for each in tasks}
    fitting = fitted(saes, infos, allow_mismatch=allow_mismatch)
    results: list[StudyResult] = []

    def done(result: StudyResult) -> None:
        results.append(result)
        show(result)
        if output is not None:
            write_studies(results, output)

    @contextmanager
    def opening(each: str) -> Iterator[StudyContext]:
        loaded, tokenizer = load_model(each)
        subject = Subject.of(
            loaded, tokenizer, fitting[each], chat=chat, allow_mismatch=allow_mismatch
        )
        own, several = tasks[each]
        for task in several.values():
            check_task(task, subject, select, report)
        with track_of(subject, each, chosen_runtime) as track:
            yield StudyContext(each, subject, own, several, track, budget)

    run_studies(studies, [partial(opening, each) for each in tasks], done)
    if output is not None:
        say(f"wrote {output}")


def tasks_of(model: str, instructions: Sequence[str]) -> tuple[dict[str, Task], dict[str, Task]]:
    """Return the tasks to study, and those for studies that compare instructions.

    Without instructions both are four tasks of the model; fewer than two are filled up to four.

    Raises:
        ValueError: one names no task of the model, or two have one name.
    """
    names = names_for(model)
    for given in instructions:
        if given not in names and not is_task(given):
            raise ValueError(
                f"--instruction: expected the name of a task, whose verifier tells what follows, "
                f"one of {', '.join(names)}, got {given!r}"
            )
    handful = [each for each in _HANDFUL if each in names]
    own = {given: task_for(model, given) for given in instructions or handful[:_SEVERAL]}
    if len({task.name for task in own.values()}) < len(own):
        raise ValueError(f"--instruction: expected tasks of different names, got {list(own)}")
    several = dict(own)
    if len(own) < 2:
        taken = {task.name for task in own.values()}
        more = [each for each in handful if each not in taken][: _SEVERAL - len(own)]
        several |= {each: task_for(model, each) for each in more}
    return own, several


def shared_tasks(
    model: str, instructions: Sequence[str]
) -> tuple[dict[str, Task], dict[str, Task]]:
    """Return those of the first model's tasks that another model has too, twice.

    Raises:
        ValueError: it has none of them.
    """
    names = names_for(model)
    own = [each for each in instructions if ":" in each or each.endswith(SUFFIXES)]  # the user's
    shared = {each: task_for(model, each) for each in instructions if each in names or each in own}
    if not shared:
        raise ValueError(
            f"--instruction: expected one that model {model} has too, one of {', '.join(names)}, "
            f"got {', '.join(instructions)}"
        )
    return shared, shared


def fitted(
    saes: Sequence[SparseAutoencoder], models: dict[str, ModelInfo], *, allow_mismatch: bool
) -> dict[str, list[SparseAutoencoder]]:
    """Give each SAE to every model that it fits, those of lower layers first.

    Raises:
        ValueError: an SAE fits no model, a model has none, or an SAE allows no edits.
    """
    found: dict[str, list[SparseAutoencoder]] = {model: [] for model in models}
    for sae in saes:
        sae.require_edits()
        refusals = []
        for model, info in models.items():
            try:
                check_sae(sae, info, allow_mismatch=allow_mismatch)
            except ValueError as refusal:
                refusals.append(refusal)
            else:
                found[model].append(sae)
        if len(refusals) == len(models):
            raise refusals[-1]
    for model, own in found.items():
        if not own:
            raise ValueError(
                f"--sae: expected one that fits model {model}, got none of {len(saes)}"
            )
        own.sort(key=lambda sae: sae.layer)
    return found


def show(result: StudyResult) -> None:
    """Print a study's table and its verdict."""
    if result.table is not None:
        shown = RichTable(title=f"{result.study}: {result.claim}", title_justify="left")
        for i, column in enumerate(result.table.columns):
            shown.add_column(escape(column), justify="left" if i == 0 else "right")
        for row in result.table.rows:
            shown.add_row(*(_cell(each) for each in row))
        out.print(shown)
    out.print(f"{result.study}: {result.verdict}", markup=False, highlight=False, soft_wrap=True)


def _cell(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Share):
        return f"{cell} [dim]{100 * cell.low:.0f}-{100 * cell.high:.0f}[/dim]"
    return f"{cell:.3g}" if isinstance(cell, float) else escape(str(cell))
