"""``saif identify``: from contrast pairs to a latent set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from saif_fast.cli.app import out, say
from saif_fast.cli.auto import examples, find_set
from saif_fast.cli.generate import RuntimeName, pick_runtime
from saif_fast.cli.loading import (
    ModelOption,
    SaesOption,
    as_task,
    check_output,
    load_info,
    load_model,
    load_saes,
    read_lines,
    set_output,
    tasks_for,
)
from saif_fast.evaluate.subject import Subject, check_prompts
from saif_fast.identify import (
    ContrastPairs,
    LatentStatistics,
    build_pairs,
    collect,
    load_pairs,
)
from saif_fast.identify.statistics import DEFAULT_K, check_choice
from saif_fast.latent_set import LatentSet
from saif_fast.model_info import check_sae
from saif_fast.runtime import find_runtime
from saif_fast.search.find import N_PAIRS
from saif_fast.search.race import reply_tokens
from saif_fast.search.space import WINDOWS, check_windows
from saif_fast.search.tryout import (
    MAX_TOKENS,
    N_CONTENTS,
    N_YARDSTICK,
    Verdict,
    best_layer,
    try_out,
)
from saif_fast.tasks import Task
from saif_fast.tasks.judge import JudgeError


class Position(StrEnum):
    """The place of the instruction relative to the content."""

    post = "post"
    pre = "pre"
    both = "both"


def identify(
    model: ModelOption,
    sae: SaesOption,
    output: Annotated[Path, typer.Option("-o", "--output", help="The latent set to write.")],
    pairs: Annotated[
        Path | None, typer.Option(help='JSON lines {"positive", "negative", "group"}; - is stdin.')
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option(help="A task's name, or the instruction's text; repeat it for more wordings."),
    ] = None,
    contents: Annotated[
        str | None, typer.Option(help="File of contents, one per line; '-' is stdin.")
    ] = None,
    position: Annotated[
        Position | None, typer.Option(help="Of the instruction.", show_default="post")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Chat template; used where there is one."),
    ] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Latents in the set.", show_default=f"{DEFAULT_K}")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Strength mu + beta * sigma.", show_default="0")
    ] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Search methods, layers and strengths for the task."),
    ] = False,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="With --auto: per method.", show_default="80")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            help=f"With --auto: {', '.join(WINDOWS)}; repeat it.", show_default="all of them"
        ),
    ] = None,
    runtime: Annotated[
        RuntimeName | None, typer.Option(help="With --auto: what tries them; vllm if installed.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="With --auto: a file to resume an interrupted search from.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="With --auto: write what was tried, for saif report.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pairs and of the search.")] = 0,
    norm_scaling_factor: Annotated[
        float | None, typer.Option(help="Of an SAE whose files lack it: sqrt(d_model) / mean norm.")
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Take an SAE of another model of this shape.")
    ] = False,
) -> None:
    """Find the latents that make a model follow an instruction."""
    if (pairs is None) == (not instruction):
        raise ValueError("identify: expected either --pairs or --instruction")
    if pairs is not None and contents is not None:
        raise ValueError("--contents: expected with --instruction, got it with --pairs")
    if pairs is not None and position is not None:
        raise ValueError("--position: expected with --instruction, since pairs have their own")
    if auto and (k is not None or beta is not None):
        raise ValueError("--auto: expected without --k and --beta, which it chooses")
    for option, value in (
        ("--candidates", candidates),
        ("--window", window),
        ("--runtime", runtime),
        ("--journal", journal),
        ("--results", results),
    ):
        if value is not None and not auto:
            raise ValueError(f"{option}: expected with --auto, which searches")
    check_windows(window or [])
    named = as_task(instruction, model) if instruction else None
    if auto and named is None:
        raise ValueError(
            "--auto: expected --instruction with the name of a task, which scores replies"
        )
    if pairs is not None:
        contrast = load_pairs(pairs)
    else:
        given = _of_task(named) if named is not None else of_texts(instruction or [], model)
        if contents is not None:
            given["contents"] = [line.text for line in read_lines(contents, "--contents")]
            if auto and named is not None:
                _check_disjoint(given["contents"], named)
        if auto and named is not None:
            given |= {"wordings": named.main_wordings, "max_pairs": N_PAIRS}
        contrast = build_pairs(position=(position or Position.post).value, seed=seed, **given)
    output = set_output(output)
    if results is not None:
        check_output(results, "--results")
    saes = load_saes(sae, norm_scaling_factor)
    for read in saes:
        # --auto never takes more latents than there are.
        check_choice(read, k or (1 if auto else DEFAULT_K), beta or 0.0)
    info = load_info(model)
    for read in saes:
        check_sae(read, info, allow_mismatch=allow_mismatch)
    name = pick_runtime(runtime)
    if auto:
        find_runtime(name)  # refuse a missing runtime before the model is loaded
    loaded, tokenizer = load_model(model)
    subject = Subject.of(loaded, tokenizer, saes, chat=chat, allow_mismatch=allow_mismatch)
    if auto and named is not None:
        check_prompts(named, subject, n_report=0)
        found = find_set(
            named,
            subject,
            pairs=contrast,
            model=model,
            runtime=name,
            size=candidates or 80,
            windows=window or tuple(WINDOWS),
            journal=journal,
            seed=seed,
            results=results,
        )
    else:
        found = _found(subject, contrast, k or DEFAULT_K, beta or 0.0)
        wording = contrast.pairs[0].group or None
        _try(found, subject, named or tasks_for(model)[0], wording, scored=named is not None)
    found.save(output)
    out.print(found.describe(), markup=False, highlight=False, soft_wrap=True)
    say(f"wrote {output}")


def _found(subject: Subject, pairs: ContrastPairs, k: int, beta: float) -> LatentSet:
    """Make SAIF's set of each SAE, and choose among them where there are several."""
    layers = [sae.layer for sae in subject.saes]
    activations = collect(subject.model, subject.tokenizer, pairs, layers, chat=subject.chat)
    measured = [
        LatentStatistics.compute(sae, activations, allow_mismatch=subject.allow_mismatch)
        for sae in subject.saes
    ]
    # Of several SAEs, those of which no latent rises are no candidates; of one, that is an error.
    rising = [statistics for statistics in measured if statistics.ranking()] or measured[:1]
    sets = [statistics.latent_set(k, beta) for statistics in rising]
    if len(sets) == 1:
        return sets[0]
    # A negative with another instruction would be scored against it.
    plain = [pair for pair in pairs.pairs if pair.negative in pair.positive] or pairs.pairs
    prompts = [
        (subject.prompter(pair.positive, None), subject.prompter(pair.negative, None))
        for pair in plain[:N_CONTENTS]
    ]
    best = best_layer(sets, subject, prompts)
    shown = ", ".join(str(layer) for latent_set in sets for layer in latent_set.layers)
    say(f"of layers {shown}, {sets[best].layers[0]} makes the replies most likely")
    return sets[best]


def _try(
    found: LatentSet, subject: Subject, task: Task, wording: str | None, *, scored: bool
) -> None:
    """Show four replies before and after, and warn of a set that does not do what it is for."""
    try:
        tried = try_out(
            found,
            subject,
            task.select[:N_CONTENTS],
            more=task.select[N_CONTENTS:N_YARDSTICK],
            max_tokens=reply_tokens(task, MAX_TOKENS),
            instruction=wording,
            scorer=task.scorer if scored else None,
        )
    except JudgeError as error:
        say(f"warning: the set was not tried: {error}")
        return
    for line in examples(tried.contents, tried.before, tried.after):
        out.print(line, highlight=False, soft_wrap=True)
    n = len(tried.contents)
    counts = "; ".join(
        f"{name} {pair[1]}/{n}, {pair[0]}/{n} without it"
        for name, pair in (("follow", tried.follow), ("sound", tried.sound))
        if pair is not None
    )
    warned = tried.verdict in (Verdict.BREAKS, Verdict.NOTHING)
    told = f"the set {tried.verdict}{counts and f': {counts}'}"
    say(f"warning: {told}" if warned else told)
    if warned:
        say("try: another layer's --sae, or --auto, which searches layers, strengths and methods")


def _of_task(task: Task) -> dict[str, Any]:
    return {
        "contents": task.identify,
        "wordings": [wording.text for wording in task.wordings],
        "neutral": task.neutral,
        "others": task.others,
    }


def of_texts(wordings: list[str], model: str) -> dict[str, Any]:
    """Return arguments of ``build_pairs`` for the user's own wordings.

    The instructions of the model's tasks are for negatives: without them any appended sentence
    would tell the two sides apart. A task that has one of the wordings is left out.
    """
    tasks = tasks_for(model)
    known = [[wording.text for wording in task.wordings] for task in tasks]
    return {
        "contents": tasks[0].identify,
        "wordings": wordings,
        "neutral": tasks[0].neutral,
        "others": [text for texts in known if not set(texts) & set(wordings) for text in texts],
    }


def _check_disjoint(contents: list[str], task: Task) -> None:
    shared = sorted(set(contents) & {*task.select, *task.report})
    if shared:
        raise ValueError(
            f"--contents: expected none that task {task.name!r} selects or reports on, "
            f"got {len(shared)} of them, such as {shared[0]!r}"
        )
