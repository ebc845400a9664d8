"""``saif demo``: a real model is made to follow three instructions that it is not given."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from saif_fast import smollm2
from saif_fast.cli.app import out, say
from saif_fast.cli.auto import table
from saif_fast.cli.generate import RuntimeOption, pick_runtime
from saif_fast.cli.loading import load_model, load_saes, task_for
from saif_fast.cli.track import track_of
from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Reply
from saif_fast.latent_set import LatentSet
from saif_fast.search import Round, best_of_methods, measure, search
from saif_fast.search.found import described, found_set
from saif_fast.search.race import Outcome
from saif_fast.set_dir import SetDirectory

# Searched here and now, by a search small enough for a demonstration.
SEARCHED = "lower_case"
ROUNDS = (Round(contents=6, max_tokens=24, keep=6), Round(contents=16, max_tokens=48, keep=1))
N_CANDIDATES = 8
# Found beforehand by `saif eval`; their files say how.
SHIPPED = ("numbered_list", "quotation_marks")
N_REPORT, N_EXAMPLES = 24, 3


def demo(
    output: Annotated[Path, typer.Option(help="Directory of the sets.")] = Path("build/demo"),
    runtime: RuntimeOption = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="Candidates per method of the search.")
    ] = N_CANDIDATES,
    contents: Annotated[int, typer.Option(min=1, help="Report contents per task.")] = N_REPORT,
) -> None:
    """Search a set for SmolLM2-135M-Instruct, and steer a real vLLM with it and two known sets."""
    started = time.monotonic()
    name = pick_runtime(runtime)
    known = {each: smollm2.set_path(each) for each in SHIPPED}
    (output / "sets").mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(smollm2.NAME)
    subject = Subject.of(model, tokenizer, load_saes([smollm2.NAME]))
    tasks = {each: task_for(smollm2.NAME, each) for each in (SEARCHED, *SHIPPED)}
    sets = {each: LatentSet.load(path) for each, path in known.items()}
    with track_of(subject, smollm2.NAME, name) as track:
        say(f"{SEARCHED}: searching {candidates} candidates of every method")
        standings = search(tasks[SEARCHED], subject, track, size=candidates, rounds=ROUNDS)
        best = best_of_methods(standings)
        out.print(table(tasks[SEARCHED], standings))
        chosen = next(each for each in best.values() if each.candidate.latent_set is not None)
        say(f"taken: {described(chosen)}")
        sets[SEARCHED] = found_set(chosen, tasks[SEARCHED], standings, rounds=ROUNDS)
        rows = {
            each: {
                "unsteered": Candidate(),
                "prompted": Candidate(instructed=True),
                "steered": Candidate(latent_set=sets[each]),
            }
            for each in tasks
        }
        say(f"replies to {contents} contents that no search has seen")
        outcomes, replies = measure(rows, tasks, subject, track, n_report=contents)
    for each, latent_set in sets.items():
        latent_set.save(SetDirectory(output / "sets").path(each))
    for each, task in tasks.items():
        out.print(f"[bold]{each}[/bold]: {escape(task.wordings[0].text)}")
        for line in _examples(replies[each]["unsteered"], replies[each]["steered"]):
            out.print(line, highlight=False, soft_wrap=True)
    out.print(_table(outcomes, f"{smollm2.MODEL_NAME}, {name}: of {contents} replies"))
    say(
        f"{time.monotonic() - started:.0f} s; the sets of {' and '.join(SHIPPED)} were searched "
        "beforehand (saif inspect says how)"
    )
    say(
        f"try: saif generate --model {smollm2.NAME} --set-dir {output / 'sets'} "
        f"--saif {SEARCHED} --compare"
    )


def _examples(before: Sequence[Reply], after: Sequence[Reply]) -> list[str]:
    shown = zip(before[:N_EXAMPLES], after[:N_EXAMPLES], strict=True)
    return [
        f"  {escape(plain.content)}\n"
        f"    [dim]{escape(' '.join(plain.text.split()))}[/dim]\n"
        f"    {escape(' '.join(steered.text.split()))}"
        for plain, steered in shown
    ]


def _table(outcomes: Mapping[str, Mapping[str, Outcome]], title: str) -> Table:
    """Make a table, instructions down: what follows, is sound, and both, without and with a set."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("follow / sound / both")
    for name in ("unsteered", "prompted", "steered"):
        shown.add_column(name, justify="right")
    for task, by_name in outcomes.items():
        cells = [f"{each.strict} / {each.sound} / {each.both}" for each in by_name.values()]
        shown.add_row(task, *cells)
    return shown
