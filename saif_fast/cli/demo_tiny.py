"""``saif demo-tiny``: SAIF on the embedded model, from contrast pairs to the table of results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

from saif_fast import embedded
from saif_fast.cli.app import out, say
from saif_fast.cli.generate import RuntimeOption, pick_runtime
from saif_fast.cli.loading import load_model, names_for, start_runtime, task_for
from saif_fast.evaluate.document import ResultsDocument, TaskResults, write_results
from saif_fast.evaluate.record import examples_of, latents_by_method, run_of
from saif_fast.evaluate.results import Results, tables
from saif_fast.evaluate.study import Search, choose, report
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Choice, Reply
from saif_fast.latent_set import LatentSet
from saif_fast.logit_bias import Unembedding
from saif_fast.runtime import Runtime
from saif_fast.sae import load_sae
from saif_fast.set_dir import SetDirectory
from saif_fast.tasks import Task

N_SELECT, N_REPORT = 24, 200
N_EXAMPLES = 3


def demo_tiny(
    output: Annotated[Path, typer.Option(help="Directory of the sets and results.json.")] = Path(
        "build/demo-tiny"
    ),
    runtime: RuntimeOption = None,
    select: Annotated[int, typer.Option(min=1, help="Select contents per task.")] = N_SELECT,
    contents: Annotated[int, typer.Option(min=1, help="Report contents per task.")] = N_REPORT,
    task: Annotated[
        list[str] | None, typer.Option(help="The embedded model's tasks; all of them.")
    ] = None,
) -> None:
    """Run SAIF and its controls on the embedded model, and print the results."""
    name = pick_runtime(runtime)
    # The tensors are tiny: a second thread costs more than it brings.
    torch.set_num_threads(1)
    started = time.monotonic()
    embedded.verify()
    model, tokenizer = load_model(embedded.NAME)
    last, middle = (load_sae(embedded.sae_path(which)) for which in ("last", "middle"))
    subject = Subject(model, tokenizer, last, {"middle": middle})
    tasks = {each: task_for(embedded.NAME, each) for each in task or names_for(embedded.NAME)}
    choices = _choose(subject, tasks, select)
    chosen_after = time.monotonic() - started
    set_dir = output / "sets"

    def open_with(sets: Mapping[str, LatentSet]) -> Runtime:
        for set_name, latent_set in sets.items():
            latent_set.save(set_dir / f"{set_name}.safetensors")
        say(f"{len(sets)} sets in {set_dir}; starting {name}")
        return start_runtime(name, embedded.NAME, SetDirectory(set_dir))

    results, replies = report(choices, tasks, subject, name, open_with, contents)
    unembedding = Unembedding(model)
    recorded = {
        each: TaskResults(
            instruction=chosen.wordings[0].text,
            contents="report",
            max_tokens=chosen.max_tokens,
            rows=results[each],
            latents=latents_by_method(
                {choice.method: choice.candidate for choice in choices[each]},
                unembedding,
                tokenizer,
            ),
            examples=examples_of(replies[each]),
        )
        for each, chosen in tasks.items()
    }
    took = time.monotonic() - started
    run = run_of(subject, name, seed=0, candidates=Search().size, seconds=took)
    write_results(ResultsDocument(run, recorded), output / "results.json")
    _show_examples(out, replies)
    title = f"embedded model, {contents} report contents per task, {name}"
    for shown in tables(results, title, out.width):
        out.print(shown)
    for line in _above_logit_bias(results):
        out.print(line, highlight=False, soft_wrap=True)
    say(
        f"{output / 'results.json'} written; {took:.0f} s, {chosen_after:.0f} s of it to identify "
        "and choose"
    )
    say(f'try: saif generate --model embedded --set-dir {set_dir} --saif "german*0.9" --compare')


def _choose(subject: Subject, tasks: Mapping[str, Task], n_select: int) -> dict[str, list[Choice]]:
    search, choices = Search(), {}
    for name, task in tasks.items():
        started = time.monotonic()
        choices[name] = choose(task, subject, search, n_select)
        saif = next(choice for choice in choices[name] if choice.method == "saif")
        say(
            f"{name}: k={saif.candidate.parameters['k']} beta={saif.candidate.parameters['beta']} "
            f"of {search.size} candidates, {saif.selected.strict}/{saif.selected.n} on select "
            f"contents ({time.monotonic() - started:.0f} s for all methods)"
        )
    return choices


def _show_examples(console: Console, replies: Mapping[str, Mapping[str, list[Reply]]]) -> None:
    for name, by_method in replies.items():
        console.print(f"[bold]{name}[/bold]")
        pairs = zip(by_method["unsteered"], by_method["saif"], strict=True)
        for plain, steered in list(pairs)[:N_EXAMPLES]:
            console.print(
                f"  {escape(plain.content)} [dim]{escape(plain.text.strip())}[/dim] "
                f"-> {escape(steered.text.strip())}",
                highlight=False,
                soft_wrap=True,
            )


def _above_logit_bias(results: Results) -> list[str]:
    """List live edits and middle-layer methods whose interval is above those of all biases."""
    lines = []
    for name, by_method in results.items():
        biases = {m: row for m, row in by_method.items() if m.startswith("logit_bias")}
        top = max(biases, key=lambda m: (biases[m].high, biases[m].strict))
        above = [
            f"{m} ({100 * row.strict:.0f} %)"
            for m, row in by_method.items()
            if (m.startswith(("live", "project")) or m.endswith("_middle"))
            and row.low > biases[top].high
        ]
        if above:
            lines.append(
                f"{name}: {', '.join(above)} above every logit bias "
                f"(best: {top}, {100 * biases[top].strict:.0f} %)."
            )
    return lines or ["No live edit and nothing at the middle layer is above every logit bias."]
