"""Every kernel compiled for GPUs that are not here: no spill, wide loads, matrix instructions.

In processes of their own, since this one may have Triton's interpreter in place of its compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parent))
from aot import Machine
from aot_cases import cases
from op_inputs import OPS

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, str(ROOT / "bench" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


SLOW = [pytest.param(target, marks=pytest.mark.slow) for target in ("sm_80", "sm_100")]


@pytest.mark.extended  # compiles for a minute
@pytest.mark.parametrize("target", ["sm_90", "gfx942", *SLOW])
def test_no_kernel_spills_or_loads_rows_in_pieces_or_lacks_matrix_instructions(target: str) -> None:
    report = run("kernels_report.py", "--check", "--targets", target)
    assert report.returncode == 0, report.stdout + report.stderr


def test_every_op_is_compiled() -> None:
    assert {case.op for case in cases()} >= set(OPS)


@pytest.mark.extended  # compiles several kernels
def test_each_of_these_defects_is_found() -> None:
    file = Path(__file__).parent / "bad_kernels.py"
    functions = ("sound_rows", "narrow_rows", "sound_product", "widened_product", "spilling_rows")
    launches = [f"{file}:{function}" for function in functions]
    report = run("aot.py", *launches, "--targets", "sm_90", "gfx942")
    found = [line.split() for line in report.stdout.splitlines() if line.startswith("_")]
    assert [(kernel, target, defect) for kernel, _, target, defect, *_ in found] == [
        ("_row_kernel", "sm_90", "loads"),  # the narrow one alone: it comes once
        ("_row_kernel", "gfx942", "loads"),
        ("_product_kernel", "sm_90", "widens"),
        ("_product_kernel", "gfx942", "widens"),
        ("_centre_kernel", "sm_90", "spills"),
        ("_centre_kernel", "gfx942", "spills"),
    ], report.stdout + report.stderr
    assert report.returncode == 1


def test_what_no_kernel_here_does_is_found_too() -> None:
    # No target compiles a product of 16-bit operands to anything but matrix instructions.
    sizes = {field: 0 for field in Machine._fields}
    product = Machine(**{**sizes, "target": "gfx942", "dots": 2, "matrix": {"HMMA": 8}})
    assert product.complaints() == []
    assert product._replace(matrix={}).complaints() == ["has 2 tl.dot and no matrix instruction"]
    assert product._replace(matrix={}, fp32_dots=2).complaints() == []
    large = product._replace(shared_bytes=65537)
    assert large.complaints() == ["takes 65537 of 65536 shared bytes"]
    assert large._replace(target="sm_90").complaints() == []
