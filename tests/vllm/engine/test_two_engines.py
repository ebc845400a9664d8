"""What an engine serves is decided by its own arguments, whatever else its process does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import engine_job
import hf_reference
import pytest
from hf_reference import Comparison

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory

pytestmark = pytest.mark.engine

CONTENTS = ("clamp_middle", "vector_middle")  # of one name, in two directories
ENGINE = {
    "model": str(model_path()),
    "dtype": "float32",
    "max_model_len": 512,
    "block_size": 32,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 28,
}


@pytest.mark.parametrize(
    ("one_process", "order"),
    [(True, (0, 1)), (False, (1, 0))],
    ids=["one_process", "processes_and_async"],
)
def test_each_engine_answers_from_the_directory_of_its_own_arguments(
    one_process: bool,
    order: Sequence[int],
    hf_model: Any,
    sets: Mapping[str, LatentSet],
    requests: Mapping[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    asked = {**requests["clamp_middle"], "extra_args": {"saif": "tone"}}
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory, content in zip(directories, CONTENTS, strict=True):
        directory.mkdir()
        sets[content].save(SetDirectory(directory).path("tone"))
    job = {
        "engine": ENGINE,
        "set_dirs": list(map(str, directories)),
        "batch": [asked],
        "order": order,
        "asynchronous": not one_process,
    }
    results = serve(job, one_process, tmp_path)

    expected = [hf_reference.generate(hf_model, {"tone": sets[c]}, asked) for c in CONTENTS]
    assert expected[0]["tokens"] != expected[1]["tokens"]
    comparison = Comparison()
    for content, want, result in zip(CONTENTS, expected, results, strict=True):
        for [got] in result["batches"]:
            comparison.add(content, want, got)
        for report in result["reports"]:
            assert report["content_hashes"] == [sets[content].content_hash]
            assert report["planned"] == report["steered"] == asked["max_tokens"]
    comparison.check(most_excused=0)
    assert comparison.compared == 3


def serve(job: dict[str, Any], one_process: bool, folder: Path) -> list[dict[str, Any]]:
    files = folder / "job.json", folder / "results.json"
    files[0].write_text(json.dumps(job))
    script = engine_job.SUPPORT / "two_engines.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, files)],
        env=engine_job.environment("v1-eager", one_process=one_process),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    results: list[dict[str, Any]] = json.loads(files[1].read_text())
    return results
