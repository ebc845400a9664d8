"""``saif eval``: SAIF and its controls in one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from saif_fast.cli.app import out, say
from saif_fast.cli.generate import RuntimeOption, pick_runtime
from saif_fast.cli.loading import (
    ModelOption,
    SaesOption,
    check_output,
    load_info,
    load_model,
    load_saes,
    task_for,
)
from saif_fast.cli.track import track_of
from saif_fast.evaluate.document import ResultsDocument, write_results
from saif_fast.evaluate.record import run_of
from saif_fast.evaluate.results import tables
from saif_fast.evaluate.study import check_task
from saif_fast.evaluate.subject import Subject
from saif_fast.model_info import check_sae
from saif_fast.names import set_name
from saif_fast.runtime import find_runtime
from saif_fast.search import ROUNDS, best_of_methods, compare, search
from saif_fast.search.found import found_set
from saif_fast.search.record import reported
from saif_fast.search.space import WINDOWS, check_windows
from saif_fast.set_dir import SetDirectory


def evaluate(
    model: ModelOption,
    sae: SaesOption,
    task: Annotated[
        list[str],
        typer.Option(help="A task's name, PATH.yaml or 'module:attribute'; repeat it."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the results, for saif report.")
    ] = None,
    sets: Annotated[
        Path | None,
        typer.Option(help="A directory for the best set of each method, TASK.METHOD.safetensors."),
    ] = None,
    runtime: RuntimeOption = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates per method.")] = 80,
    window: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(WINDOWS)}; repeat it.", show_default="all of them"),
    ] = None,
    report: Annotated[
        int | None, typer.Option(min=1, help="Number of report contents; all.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="A directory to resume an interrupted evaluation from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pairs and of the searches.")] = 0,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Chat template; used where there is one."),
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Take an SAE of another model of this shape.")
    ] = False,
) -> None:
    """Compare SAIF with prompting, other vectors, logit biases and chance, each by a search."""
    tasks = {name: task_for(model, name) for name in task}
    windows = window or tuple(WINDOWS)
    check_windows(windows)
    if output is not None:
        check_output(output)
    if sets is not None:
        sets.mkdir(parents=True, exist_ok=True)
    name = pick_runtime(runtime)
    find_runtime(name)  # refuse a missing runtime now, not after the search
    saes = load_saes(sae)
    info = load_info(model)
    for each in saes:
        each.require_edits()
        check_sae(each, info, allow_mismatch=allow_mismatch)
    loaded, tokenizer = load_model(model)
    subject = Subject.of(loaded, tokenizer, saes, chat=chat, allow_mismatch=allow_mismatch)
    for chosen in tasks.values():
        check_task(chosen, subject, n_report=report)
    started = time.monotonic()
    with track_of(subject, model, name) as track:
        found = {}
        for task_name, chosen in tasks.items():
            say(f"{task_name}: searching {candidates} candidates of every method")
            found[task_name] = search(
                chosen,
                subject,
                track,
                size=candidates,
                windows=windows,
                controls=True,
                journal=journal and journal / f"{set_name(task_name)}.jsonl",
                seed=seed,
            )
        say("reporting on contents that no search has seen")
        results, replies = compare(
            found,
            tasks,
            subject,
            track,
            n_report=report,
            journal=journal and journal / "report.jsonl",
        )
    if sets is not None:
        for task_name, standings in found.items():
            for method, best in best_of_methods(standings).items():
                if best.candidate.latent_set is not None and best.outcome.strict:
                    path = SetDirectory(sets).path(f"{set_name(task_name)}.{method}")
                    found_set(best, tasks[task_name], standings, seed=seed).save(path)
        say(f"wrote the sets to {sets}")
    for shown in tables(results, f"{model} on report contents ({name})", out.width):
        out.print(shown)
    if output is not None:
        run = run_of(
            subject,
            name,
            seed=seed,
            candidates=candidates,
            seconds=time.monotonic() - started,
            windows=windows,
            rounds=ROUNDS,
        )
        recorded = {
            each: reported(chosen, found[each], results[each], replies[each], subject)
            for each, chosen in tasks.items()
        }
        write_results(ResultsDocument(run, recorded), output)
        say(f"wrote {output}")
