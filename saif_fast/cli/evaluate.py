"""``saif eval``: SAIF and its controls in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from saif_fast.cli.app import out, say
from saif_fast.cli.generate import RuntimeName
from saif_fast.cli.loading import (
    ModelOption,
    SaeOption,
    check_output,
    load_info,
    load_model,
    start_runtime,
)
from saif_fast.evaluate import study
from saif_fast.evaluate.results import tables, write_results
from saif_fast.latent_set import LatentSet
from saif_fast.model_info import check_sae
from saif_fast.references import sae_source
from saif_fast.runtime import Runtime, find_runtime
from saif_fast.sae import load_sae


def evaluate(
    model: ModelOption,
    sae: SaeOption,
    task: Annotated[
        list[str],
        typer.Option(help="A task's name, PATH.yaml or 'module:attribute'; repeat it."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the results as JSON.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another layer's SAE, for methods there; repeat it."),
    ] = None,
    runtime: Annotated[
        RuntimeName, typer.Option(help="What the reported replies run on.")
    ] = RuntimeName.transformers,
    select: Annotated[
        int | None, typer.Option(min=1, help="Number of select contents; all.")
    ] = None,
    report: Annotated[
        int | None, typer.Option(min=1, help="Number of report contents; all.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Chat template; used where there is one."),
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Take an SAE of another model of this shape.")
    ] = False,
) -> None:
    """Compare SAIF with prompting, other vectors, logit biases and chance, by equal searches."""
    tasks = {name: task_for(model, name) for name in task}
    if output is not None:
        check_output(output)
    find_runtime(runtime.value)  # refuse a missing runtime now, not after the search
    main, *others = (load_sae(sae_source(each)) for each in (sae, *(also or ())))
    info = load_info(model)
    for each in (main, *others):
        each.require_edits()
        check_sae(each, info, allow_mismatch=allow_mismatch)
    loaded, tokenizer = load_model(model)
    subject = study.Subject(
        loaded,
        tokenizer,
        main,
        {f"layer{other.layer}": other for other in others},
        chat=chat,
        allow_mismatch=allow_mismatch,
    )
    search, name = study.Search(), runtime.value
    for chosen in tasks.values():
        study.check_task(chosen, subject, select, report)
    choices = {}
    for task_name, chosen in tasks.items():
        say(f"{task_name}: choosing among {search.size} candidates of every method")
        choices[task_name] = study.choose(chosen, subject, search, select)

    def open_with(sets: Mapping[str, LatentSet]) -> Runtime:
        if name == RuntimeName.transformers.value:
            return subject.open(sets)  # the model is loaded already
        return start_runtime(name, model, sets)

    results, _ = study.report(choices, tasks, subject, name, open_with, report)
    for shown in tables(results, f"{model} on report contents ({name})", out.width):
        out.print(shown)
    if output is not None:
        write_results(results, output)
        say(f"wrote {output}")
