"""The ``saif`` command and its commands; ``saif serve`` is added by saif_vllm."""

from __future__ import annotations

from saif_fast.cli.app import app
from saif_fast.cli.demo import demo
from saif_fast.cli.demo_tiny import demo_tiny
from saif_fast.cli.evaluate import evaluate
from saif_fast.cli.generate import generate
from saif_fast.cli.identify import identify
from saif_fast.cli.report import report
from saif_fast.cli.sets import export, inspect, make
from saif_fast.cli.study import HELP, study
from saif_fast.cli.tasks import tasks

__all__ = ["app", "main"]

app.command()(identify)
app.command()(make)
app.command()(inspect)
app.command()(generate)
app.command("eval")(evaluate)
app.command(help=HELP)(study)
app.command()(report)
app.command()(export)
app.command()(demo)
app.command()(demo_tiny)
app.command()(tasks)


def main() -> None:
    """Run the console script."""
    app()
