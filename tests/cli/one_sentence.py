"""What every error of a command looks like."""

from __future__ import annotations

from typer.testing import Result


def sentence(result: Result) -> str:
    """The one line an error is."""
    assert result.exit_code == 1, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line
