"""The application object: what every command's errors and warnings look like."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

# Results go to stdout, everything about them to stderr. A pipe has no width: nothing is folded.
out = Console(width=None if sys.stdout.isatty() else 200)


class OneSentence(TyperGroup):
    """Turns an error at the public door into one line and exit code 1; a warning into one line."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module="saif_")
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


def _show_warning(message: Warning | str, *_: Any) -> None:
    say(f"warning: {_one_line(str(message))}")


def _fail(message: str) -> None:
    say(f"error: {_one_line(message)}")
    raise typer.Exit(1)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def say(line: str) -> None:
    """One line to stderr, whatever the terminal's width."""
    typer.echo(line, err=True)


def quiet() -> None:
    """Keep the logs and warnings of libraries out of the output; variables that are set stay."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for replies
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # read by the processes that we start


app = typer.Typer(
    cls=OneSentence,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Find, inspect and serve the SAE latents that make a model follow an instruction.",
)
