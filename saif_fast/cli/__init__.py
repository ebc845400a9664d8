"""The ``saif`` command: identify, make, inspect, generate, eval, export; serve is saif_vllm's."""

from __future__ import annotations

from saif_fast.cli.app import app
from saif_fast.cli.evaluate import evaluate
from saif_fast.cli.generate import generate
from saif_fast.cli.identify import identify
from saif_fast.cli.sets import export, inspect, make

__all__ = ["app", "main"]

app.command()(identify)
app.command()(make)
app.command()(inspect)
app.command()(generate)
app.command("eval")(evaluate)
app.command()(export)


def main() -> None:
    """Console script."""
    app()
