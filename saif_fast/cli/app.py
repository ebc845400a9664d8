"""The application object, and the form of every command's errors and warnings."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

# Commands of integrations: functions of the list of arguments, whose docstring is the help.
ENTRY_POINTS = "saif_fast.commands"

# Results go to stdout, everything about them to stderr. Into a pipe, lines are not folded.
out = Console(width=None if sys.stdout.isatty() else 200)


class OneSentence(TyperGroup):
    """A group that prints an expected error, or a warning, as one line; an error exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # All our warnings are UserWarnings. Other kinds are attributed to our code by chance:
            # one about a resource of vLLM's comes from wherever the garbage collector runs.
            warnings.filterwarnings("always", category=UserWarning, module="saif_")
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as missing:
                package = (missing.name or "").partition(".")[0]
                if package.startswith("saif_"):
                    raise
                _fail(f"this needs the package {package}; install it with: pip install {package}")
            except (ValueError, OSError, ImportError) as error:
                _fail(str(error))


class WithIntegrations(OneSentence):
    """The group with the commands of integrations too, each loaded when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(_integrations())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        found = _integrations().get(cmd_name) if command is None else None
        return command if found is None else _passing_all(found.name, found.load())


def _integrations() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _passing_all(name: str, function: Callable[[list[str]], None]) -> Any:
    """Make a command that passes all arguments, ``--help`` too, to ``function``."""
    single = typer.Typer(add_completion=False)
    settings = {
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    }

    @single.command(name, help=function.__doc__, context_settings=settings)
    def command(ctx: typer.Context) -> None:
        function(ctx.args)

    return typer.main.get_command(single)


def _show_warning(message: Warning | str, *_: Any) -> None:
    say(f"warning: {_one_line(str(message))}")


def _fail(message: str) -> None:
    say(f"error: {_one_line(message)}")
    raise typer.Exit(1)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def say(line: str) -> None:
    """Print one line to stderr, whatever the terminal's width."""
    typer.echo(line, err=True)


def quiet() -> None:
    """Keep logs and warnings of libraries out of the output, unless variables ask for it."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for replies
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that we start
    # vLLM sets its logger up only when its engine starts; until then it would log to stderr.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


app = typer.Typer(
    cls=WithIntegrations,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Find, inspect and serve the SAE latents that make a model follow an instruction.",
)
