"""saif_kernels imports with torch and triton alone, and without triton keeps its references."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"


def run(code: str) -> str:
    prefix = f"import sys; sys.path.insert(0, {str(KERNELS)!r})\n"
    process = subprocess.run(
        [sys.executable, "-c", prefix + code], capture_output=True, text=True, check=True
    )
    return process.stdout.strip()


def test_it_imports_torch_and_triton_alone() -> None:
    code = """
import importlib.metadata, torch, triton
before = set(sys.modules)
import saif_kernels
new = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(sorted(new - {"torch", "triton"}))
"""
    assert run(code) == "['saif_kernels']"


def test_without_triton_the_references_work() -> None:
    code = """
sys.modules["triton"] = None
import torch
from saif_kernels import LatentEdits, RequestRows, SteeringBank, steer_
bank = SteeringBank.allocate(4, 1, 1, torch.float32, "cpu")
bank.write_set(0, 0, LatentEdits.empty(4)._replace(vector=torch.ones(4)))
rows = RequestRows.allocate(1, 1, "cpu")
rows.write_row(0, [(0, 2.0)], prompt_len=1)
hidden = torch.zeros(1, 4)
steer_(hidden, None, bank, rows, torch.zeros(1, dtype=torch.int32), torch.ones(1))
print(hidden.tolist())
"""
    assert run(code) == "[[2.0, 2.0, 2.0, 2.0]]"
