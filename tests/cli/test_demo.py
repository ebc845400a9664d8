"""The README's first command, with a search and contents as few as they can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saif_fast.set_dir import SetDirectory
from saif_fast.tasks import get_task

pytestmark = [pytest.mark.engine, pytest.mark.extended, pytest.mark.timeout(900)]

TASKS = ("lower_case", "numbered_list", "quotation_marks")


def test_the_demo_searches_shows_replies_and_ends_with_a_table(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "saif_fast.cli", "demo", "--output", str(tmp_path)),
            *("--runtime", "vllm", "--candidates", "2", "--contents", "3"),
        ],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(SetDirectory(tmp_path / "sets").names()) == set(TASKS)
    assert SetDirectory(tmp_path / "sets").load("lower_case").provenance.notes["search"]
    lines = done.stdout.splitlines()
    for task in TASKS:
        heading = lines.index(f"{task}: {get_task(task).wordings[0].text}")
        contents = [line for line in lines[heading + 1 : heading + 10] if line[2] != " "]
        assert len(contents) == 3, "three contents, each with a reply before and after"
        assert any(line.startswith(f"│ {task} ") for line in lines)
    assert "unsteered" in done.stdout and "prompted" in done.stdout and "steered" in done.stdout
    assert "searched beforehand" in done.stderr
