"""``make kernels-report``: the machine code of every kernel, and the bytes that it moves.

Compiles the launches of ``aot_cases.py`` for every target and writes ``bench/results/aot/``:
``kernels.json``, ``kernels.md`` and ``traffic.md``. No GPU is needed. Exits with 1 where a kernel
has a defect that ``Machine.complaints`` names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import traffic
from aot import HEADER, TARGETS, Machine, compiled, inspect
from aot_cases import Case, cases

SWEPT = "sm_90"  # the target for which all cases are compiled
LEGEND = """\
Registers and spilled bytes are per thread, shared memory is per program. Loads and matrix
instructions are counted in the code, not as executed; "other loads" are of single numbers: ids,
scales, parameters. A kernel that several cases share is listed once.
"""
FOLDER = Path(__file__).parent / "results" / "aot"


def machines(chosen: list[tuple[str, Case]]) -> list[tuple[Case, Machine]]:
    """Compile each case for its target; a kernel that two cases share is listed once."""
    found: dict[tuple[str, str], tuple[Case, Machine]] = {}
    # Spawned: torch and Triton have threads of their own, which a fork would lose.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for (target, case), of_case in zip(chosen, pool.map(_of_case, chosen), strict=True):
            for key, machine in of_case.items():
                found.setdefault((target, key), (case, machine))
    return list(found.values())


def _of_case(chosen: tuple[str, Case]) -> dict[str, Machine]:
    target, case = chosen
    return {key: inspect(kernel) for key, kernel in compiled(target, case.launch).items()}


def rows(found: list[tuple[Case, Machine]]) -> list[str]:
    """Return the table as lines of Markdown."""
    header, rule = HEADER
    return [
        f"| op | case | d_model | dtype {header}",
        f"|---|---|---:|---{rule}",
        *(
            f"| {case.op} | {case.name} | {case.d_model} | {_name(case)} {machine.row()}"
            for case, machine in found
        ),
    ]


def complaints(found: list[tuple[Case, Machine]]) -> list[str]:
    """Return one sentence per defect."""
    return [
        f"{machine.kernel} ({case.name}, d_model {case.d_model}, {_name(case)}) "
        f"on {machine.target} {complaint}"
        for case, machine in found
        for complaint in machine.complaints(aligned_rows=case.d_model % 8 == 0)
    ]


def _name(case: Case) -> str:
    return str(case.dtype).removeprefix("torch.")


def _write(found: list[tuple[Case, Machine]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = f"Triton {version('triton')}, torch {version('torch')}; no GPU."
    defects = complaints(found)
    content = [
        {"op": c.op, "case": c.name, "d_model": c.d_model, "dtype": _name(c), **m._asdict()}
        for c, m in found
    ]
    report = {"about": about, "complaints": defects, "rows": content}
    (FOLDER / "kernels.json").write_text(json.dumps(report, indent=1) + "\n")
    sound = ["No spill, no narrow load of a row, no `tl.dot` without matrix instructions."]
    lines = ["# Kernels, compiled ahead of time", "", about, "", LEGEND, *rows(found), ""]
    lines += [f"- {defect}" for defect in defects] or sound
    (FOLDER / "kernels.md").write_text("\n".join(lines) + "\n")
    (FOLDER / "traffic.md").write_text("\n".join(traffic.report()) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="a subset; print it and write nothing")
    parser.add_argument("--op", help="this op alone; print it and write nothing")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    arguments = parser.parse_args()
    chosen = [
        (target, case)
        for target in arguments.targets
        for case in cases()
        if case.op == (arguments.op or case.op)
        and (case.typical or (target == SWEPT and not arguments.check))
    ]
    found = machines(chosen)
    if arguments.check or arguments.op:
        print("\n".join(rows(found)))
    else:
        _write(found)
    defects = complaints(found)
    print("\n".join(defects))
    return bool(defects)


if __name__ == "__main__":
    sys.exit(main())
