"""``saif identify``: from contrast pairs to a latent set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from saif_fast.cli.app import out, say
from saif_fast.cli.loading import (
    ModelOption,
    SaeOption,
    as_task,
    load_info,
    load_model,
    read_lines,
    set_output,
    tasks_for,
)
from saif_fast.evaluate import study
from saif_fast.identify import build_pairs, collect, find_latents, load_pairs
from saif_fast.identify.statistics import DEFAULT_K, check_choice
from saif_fast.model_info import check_sae
from saif_fast.references import sae_source
from saif_fast.sae import load_sae
from saif_fast.tasks import Task


class Position(StrEnum):
    """The place of the instruction relative to the content."""

    post = "post"
    pre = "pre"
    both = "both"


def identify(
    model: ModelOption,
    sae: SaeOption,
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
        bool, typer.Option("--auto", help="Choose k and beta on the task's select contents.")
    ] = False,
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
        contrast = build_pairs(position=(position or Position.post).value, **given)
    output = set_output(output)
    read = load_sae(sae_source(sae), norm_scaling_factor=norm_scaling_factor)
    # --auto never searches more latents than there are.
    check_choice(read, k or (1 if auto else DEFAULT_K), beta or 0.0)
    check_sae(read, load_info(model), allow_mismatch=allow_mismatch)
    loaded, tokenizer = load_model(model)
    if auto and named is not None:
        subject = study.Subject(loaded, tokenizer, read, chat=chat, allow_mismatch=allow_mismatch)
        study.check_prompts(named, subject, n_report=0)
        activations = collect(loaded, tokenizer, contrast, [read.layer], chat=chat)
        statistics = study.measure(read, subject, activations)
        choice = study.tune(named, subject, statistics, study.Search())
        found = choice.candidate.latent_set
        assert found is not None
        say(
            f"chose {choice.candidate.parameters} with {choice.selected.strict} of "
            f"{choice.selected.n} select contents strictly right"
        )
    else:
        found = find_latents(
            loaded,
            tokenizer,
            read,
            contrast,
            k=k or DEFAULT_K,
            beta=beta or 0.0,
            chat=chat,
            allow_mismatch=allow_mismatch,
        )
    found.save(output)
    out.print(found.describe(), markup=False, highlight=False, soft_wrap=True)
    say(f"wrote {output}")


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
