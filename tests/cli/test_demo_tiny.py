from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saif_fast.evaluate.document import read_results
from saif_fast.set_dir import SetDirectory

ROWS = (
    *("unsteered", "prompted", "saif", "diff_in_means"),
    *("logit_bias", "logit_bias_no_sae", "random"),
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "runtime", ["transformers", pytest.param("vllm", marks=pytest.mark.engine)]
)
def test_the_demo_writes_results_and_ends_with_the_table(tmp_path: Path, runtime: str) -> None:
    output = tmp_path / "demo"
    done = run(
        *(
            "saif_fast.cli",
            "demo-tiny",
            "--output",
            output,
            "--runtime",
            runtime,
            "--task",
            "french",
        ),
        *("--select", "4", "--contents", "8"),
    )
    assert done.returncode == 0, done.stderr
    results = read_results(output / "results.json")
    assert set(results.tasks) == {"french"} and results.run.runtime == runtime
    french = results.tasks["french"].rows
    assert set(ROWS) <= set(french)
    assert french["prompted"].strict == 1.0
    assert french["unsteered"].strict == 0.0
    assert french["saif"].strict >= 0.5
    assert french["saif"].runtime == runtime
    assert isinstance(french["saif"].parameters["k"], int)
    assert isinstance(french["saif"].parameters["beta"], float)
    latents = results.tasks["french"].latents["saif"]
    assert len(latents) == french["saif"].parameters["k"] and latents[0].promoted
    assert "french" in SetDirectory(output / "sets").names()
    examples = [line for line in done.stdout.splitlines() if " -> " in line]
    assert len(examples) == 3
    for row in ROWS:
        assert row in done.stdout


@pytest.mark.engine
def test_generate_through_vllm_equals_the_reference(saif, set_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Tell me about my black cat in the garden.\nTell me about this old dog.\n")
    arguments = (
        *("generate", "--model", "embedded", "--set-dir", str(set_dir)),
        *("--prompts", str(prompts), "--saif", "french", "--max-tokens", "12"),
    )
    served = run("saif_fast.cli", *arguments, "--runtime", "vllm")
    assert served.returncode == 0, served.stderr
    reference = saif(*arguments, "--runtime", "transformers")
    assert served.stdout == reference.stdout
