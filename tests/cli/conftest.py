from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from saif_fast.cli import app

sys.path.insert(0, str(Path(__file__).parent))

CONTENTS = "Tell me about my black cat in the garden.\nTell me about the old dog in the kitchen.\n"

Saif = Callable[..., Result]


@pytest.fixture(scope="session")
def saif() -> Saif:
    """Run ``saif`` in this process; an exception that is not an exit is a failure of the test."""

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        words: Sequence[str] = [str(argument) for argument in arguments]
        result = CliRunner().invoke(app, words, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def set_dir(saif: Saif, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one set that ``saif identify`` found for the task french."""
    directory = tmp_path_factory.mktemp("sets")
    result = saif(
        *("identify", "--model", "embedded", "--sae", "embedded", "--instruction", "french"),
        *("--k", "3", "--output", directory / "french.safetensors"),
    )
    assert result.exit_code == 0, result.stderr
    return directory


@pytest.fixture(scope="session")
def french(set_dir: Path) -> Path:
    return set_dir / "french.safetensors"
