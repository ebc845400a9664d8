"""The track of a race without a model, and the random model of the transformers tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saif_fast.search.race import Track
from saif_fast.set_dir import SetDirectory
from saif_fast.tasks import render

for folder in ("search", "transformers"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture
def track(tmp_path: Path) -> Track:
    from shouter import Shouter

    sets = tmp_path / "sets"
    sets.mkdir()
    directory = SetDirectory(sets)
    return Track("shouter", Shouter(directory), directory, render, lambda line: None)
