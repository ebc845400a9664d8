"""``saif generate``: replies to prompts, steered by the sets of a directory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from saif_fast import hf
from saif_fast.cli.app import out
from saif_fast.cli.loading import (
    ModelOption,
    load_info,
    load_tokenizer,
    read_lines,
    start_runtime,
)
from saif_fast.request import check_reached, parse_request, with_defaults
from saif_fast.runtime import GenerationRequest, installed_runtimes
from saif_fast.set_dir import SetDirectory, reading
from saif_fast.set_file import SetHeader
from saif_fast.windows import SCOPES


class RuntimeName(StrEnum):
    """The runtimes that the commands offer."""

    vllm = "vllm"
    transformers = "transformers"


RuntimeOption = Annotated[
    RuntimeName | None, typer.Option("--runtime", help="vllm where it is installed.")
]


def pick_runtime(chosen: RuntimeName | None) -> str:
    """Return the runtime asked for, else the first installed one: vLLM before transformers."""
    return chosen.value if chosen else installed_runtimes()[0]


def generate(
    model: ModelOption,
    set_dir: Annotated[Path, typer.Option(help="Directory of latent sets.")],
    prompts: Annotated[str, typer.Option(help="File of prompts, one per line; - is stdin.")] = "-",
    saif: Annotated[
        str | None, typer.Option(help='Sets and strengths: "french*0.8 + formal*0.4".')
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Unsteered and steered beside one another.")
    ] = False,
    runtime: RuntimeOption = None,
    scope: Annotated[str | None, typer.Option(help=f"{', '.join(SCOPES)}.")] = None,
    start: Annotated[int | None, typer.Option(help="First generated token steered.")] = None,
    stop: Annotated[int | None, typer.Option(help="First generated token not steered.")] = None,
    decay: Annotated[str | None, typer.Option(help='"OMEGA" or "OMEGA,POWER".')] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Chat template; used where there is one."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Generate greedily, with or without steering."""
    if compare and saif is None:
        raise ValueError("--compare: expected --saif, since there is nothing to compare with")
    sets = SetDirectory(set_dir)
    given = {"saif_scope": scope, "saif_start": start, "saif_stop": stop, "saif_decay": decay}
    options: dict[str, str | int | float] = {
        key: value for key, value in given.items() if value is not None
    }
    # Parsed before anything is loaded, because an engine takes a minute to start.
    asked = options if saif is None else {"saif": saif, **options}
    steering = parse_request(asked, available=sets.names())
    headers = {name: _header(sets, name) for name, _ in (() if steering is None else steering.sets)}
    if steering is not None:
        defaults = {name: header.defaults for name, header in headers.items()}
        check_reached(with_defaults(steering, defaults).window, max_tokens)
    lines = read_lines(prompts, "--prompts")
    texts = [line.text for line in lines]
    info = load_info(model)
    for used, header in headers.items():
        with reading(used):
            header.check_model(info.d_model, info.num_layers)
    name, tokenizer = pick_runtime(runtime), load_tokenizer(model)
    templated = tokenizer.chat_template is not None if chat is None else chat
    rendered = hf.chat_texts(tokenizer, texts) if templated else texts
    hf.check_lengths(
        hf.encode_texts(tokenizer, rendered), info.context, lambda i: f"--prompts {lines[i].place}"
    )
    variants: list[str | None] = [None, saif] if compare else [saif]
    requests = [
        GenerationRequest(
            prompt=prompt,
            saif=variant,
            options={} if variant is None else options,
            max_tokens=max_tokens,
        )
        for prompt in rendered
        for variant in variants
    ]
    opened = start_runtime(name, model, sets)
    try:
        replies = [generation.text.strip() for generation in opened.generate(requests)]
    finally:
        opened.close()
    if compare:
        out.print(_comparison(texts, replies, saif or ""))
    else:
        for reply in replies:
            typer.echo(reply)


def _header(sets: SetDirectory, name: str) -> SetHeader:
    with reading(name):
        return sets.header(name)


def _comparison(texts: list[str], replies: list[str], saif: str) -> Table:
    table = Table("prompt", "unsteered", escape(saif), show_lines=True)
    for i, text in enumerate(texts):
        # In a Text, a reply's brackets are no markup.
        table.add_row(Text(text), Text(replies[2 * i]), Text(replies[2 * i + 1]))
    return table
