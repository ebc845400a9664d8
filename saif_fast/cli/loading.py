"""Command-line arguments turned into models, tasks, prompts and files."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from safetensors import SafetensorError

from saif_fast import embedded, text
from saif_fast.cli.app import quiet
from saif_fast.model_info import ModelInfo
from saif_fast.names import completed
from saif_fast.references import model_source, sae_sources
from saif_fast.runtime import Runtime, Sets, open_runtime
from saif_fast.sae import SparseAutoencoder, load_sae
from saif_fast.tasks import Task, embedded_task_names, get_task, is_task, task_names
from saif_fast.text import Line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelOption = Annotated[
    str, typer.Option("--model", help="Directory, Hugging Face name, 'embedded' or 'smollm2'.")
]
SaeOption = Annotated[
    str,
    typer.Option(
        "--sae", help="Directory, RELEASE:ID, 'embedded', 'embedded:middle' or 'smollm2:LAYER'."
    ),
]
SaesOption = Annotated[
    list[str],
    typer.Option(
        "--sae",
        help="Directory, RELEASE:ID, 'embedded:middle', 'smollm2:LAYER' or 'smollm2'; repeat it.",
    ),
]


def load_saes(
    names: Sequence[str], norm_scaling_factor: float | None = None
) -> list[SparseAutoencoder]:
    """Load the SAEs that ``--sae`` names; ``smollm2`` stands for all of its layers."""
    return [
        load_sae(source, norm_scaling_factor=norm_scaling_factor)
        for name in names
        for source in sae_sources(name)
    ]


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer."""
    quiet()
    from transformers import AutoTokenizer

    return _loaded(AutoTokenizer, model)


def load_model(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in its stored dtype, on a GPU if there is one, and its tokenizer."""
    quiet()
    import torch
    from transformers import AutoModelForCausalLM

    _no_progress_bars()
    loaded = _loaded(AutoModelForCausalLM, model, dtype="auto")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval(), load_tokenizer(model)


def _no_progress_bars() -> None:
    if importlib.util.find_spec("transformers") is not None:
        from transformers.utils import logging

        logging.disable_progress_bar()


def load_info(model: str) -> ModelInfo:
    """Read a model's config, before its weights are loaded."""
    quiet()
    from transformers import AutoConfig

    return ModelInfo.from_config(_loaded(AutoConfig, model))


def _loaded(kind: Any, model: str, **options: Any) -> Any:
    source = model_source(model)
    try:
        return kind.from_pretrained(source, **options)
    # A damaged weights file raises safetensors' own error, weights of another shape RuntimeError.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # transformers explains itself over several lines. The first says what is wrong.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model: {model!r} cannot be loaded: {reason}") from error


def start_runtime(name: str, model: str, sets: Sets, **options: Any) -> Runtime:
    """Start a runtime for the model that ``--model`` names."""
    quiet()
    _no_progress_bars()
    try:
        return open_runtime(name, model_source(model), sets, **options)
    # vLLM raises RuntimeError, and so does our plugin for a vLLM that it does not know.
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"runtime {name}: did not start: {error}") from error


def names_for(model: str) -> tuple[str, ...]:
    """Return the names of the tasks for a model: its own for the embedded one, or the general."""
    return embedded_task_names() if model == embedded.NAME else task_names()


def task_for(model: str, name: str) -> Task:
    """Return the task that a command means by ``name``, given ``--model``.

    A plain name is one of :func:`names_for`; other forms are those of :func:`get_task`.

    Raises:
        ValueError: there is no such task for this model.
    """
    names = names_for(model)
    if model == embedded.NAME and name in names:
        return get_task(f"{embedded.NAME}:{name}")
    if name not in names and name in {*task_names(), *embedded_task_names()}:
        raise ValueError(f"task: expected one for model {model}, {', '.join(names)}, got {name!r}")
    return get_task(name)


def as_task(instructions: list[str], model: str) -> Task | None:
    """Return the task that ``--instruction`` names; None if its values are wordings.

    Raises:
        ValueError: a text is empty, a task is one of several values, or a single word is nearly a
            task's name: as the text of an instruction it would mean nothing.
    """
    names = names_for(model)
    for given in instructions:
        if not given.strip():
            raise ValueError("--instruction: expected a task's name or a text, got an empty one")
        named = given in names or is_task(given)
        # Several words are an instruction, whatever they look like.
        near = len(given.split()) == 1 and difflib.get_close_matches(given.lower(), names)
        if named and len(instructions) > 1:
            raise ValueError(f"--instruction: expected one task or texts only, got task {given!r}")
        if near and not named:
            raise ValueError(
                f"--instruction: {given!r} is no task; the tasks are {', '.join(names)}"
            )
    (first, *_) = instructions
    return task_for(model, first) if first in names or is_task(first) else None


def tasks_for(model: str) -> list[Task]:
    """Return all tasks for a model, for instructions that come without contents and negatives."""
    return [task_for(model, name) for name in names_for(model)]


def check_output(path: Path, argument: str = "--output") -> None:
    """Make the directory of the file that an argument names, before anything that takes long.

    Raises:
        ValueError: the file cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{argument} {path}: expected a file to write, got a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{argument} {path}: its directory cannot be made ({error.strerror})"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{argument} {path}: expected a directory to write to, got a read-only one"
        )


def set_output(path: Path) -> Path:
    """Return the file to write a set to, with its suffix, after :func:`check_output`.

    Raises:
        ValueError: the file cannot be written, or no server would take it for a set.
    """
    check_output(path)
    try:
        file = completed(path)
    except ValueError as error:
        raise ValueError(f"--output {path}: {error}") from None
    check_output(file)
    return file


def read_lines(path: str, argument: str) -> list[Line]:
    """Read the lines of a file, or of stdin for ``-``: stripped, without blank ones.

    Raises:
        ValueError: there is no line, or the file is not UTF-8.
    """
    try:
        lines = text.read_lines(path)
    except ValueError as error:
        raise ValueError(f"{argument} {error}") from error
    if not lines:
        raise ValueError(f"{argument} {path}: expected at least one line, got none")
    return [Line(line.place, line.text.strip()) for line in lines]
