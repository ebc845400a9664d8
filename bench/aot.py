"""The machine code that a kernel becomes, and its defects: no GPU is needed.

``python bench/aot.py FILE:FUNCTION`` compiles whatever FUNCTION (no arguments; tensors may be on
"meta") launches, for every target, and prints one row per kernel.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# What a program may have: CUDA's programming guide, table of compute capabilities; AMD's LDS.
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

# The tables with a row of d_model (or d_sae) contiguous elements, as kernels name their pointers;
# all others hold a few scalars per program.
ROW_TABLES = {"x", "without", "hidden", "residual", "W_enc", "W_dec", "vector", "weight"}
WIDE = 128  # bits of one thread's load

# Directives of PTX and amdgcn that say which line of Python the next instructions come from.
_FILE = re.compile(r'\s\.file\s+(?P<id>\d+) "(?P<folder>[^"]*)"(?: "(?P<name>[^"]*)")?')
_LINE = re.compile(r"\s\.loc\s+(?P<id>\d+) (?P<line>\d+)")
_PTX_LOAD = re.compile(r"\bld\.global(?:\.[\w:]+?)*?(?:\.v(?P<n>\d))?\.[busf](?P<bits>\d+)\s")
_PTX_COPY = re.compile(
    r"\bcp\.async\.(?:c[ag]\..*\], (?P<bytes>0x\w+|\d+)|(?P<bulk>bulk)\.\S*global )"
)
_GCN_LOAD = re.compile(r"\s(?:global|buffer|flat)_load_(?:dword(?:x(?P<n>\d))?|(?P<part>\w+))\b")
_SASS_MATRIX = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")
_GCN_MATRIX = re.compile(r"\s(v_mfma)_")
_DOT = re.compile(r"tt\.dot\b.*: tensor<[\dx]+x(\w+)")
_HALF_TABLE = re.compile(r"!tt\.ptr<(?:bf16|f16)>")


# Triton 3.9 warns of a default that 3.10 changes; users run the default.
warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")


# Bytes per thread: four registers of the 16-bit tile kernel are put aside once, outside its loops.
SPILL_ALLOWED = 16


class Machine(NamedTuple):
    """One compiled kernel."""

    kernel: str
    target: str
    warps: int
    stages: int
    registers: int  # per thread
    spilled_bytes: int  # per thread, of stack and local memory
    shared_bytes: int  # per program
    wide_loads: int  # of rows, 128 bits or more per thread
    narrow_loads: int  # of rows
    scalar_loads: int  # of everything else
    half_tables: bool  # some table is of 16-bit elements
    dots: int  # tl.dot
    fp32_dots: int  # of these, with operands of fp32
    matrix: dict[str, int]  # matrix instructions by name

    def row(self) -> str:
        """Return a line of Markdown, under ``HEADER``."""
        dots = f"{self.dots} ({self.fp32_dots} fp32)" if self.fp32_dots else self.dots
        matrix = ", ".join(f"{n} {name}" for name, n in self.matrix.items())
        return (
            f"| {self.kernel} | {self.target} | {self.warps} | {self.stages} | {self.registers} "
            f"| {self.spilled_bytes} | {self.shared_bytes} | {self.wide_loads} "
            f"| {self.narrow_loads} | {self.scalar_loads} | {dots} | {matrix or '-'} |"
        )

    def complaints(self, *, aligned_rows: bool = True) -> list[str]:
        """Return the defects; ``aligned_rows``: rows are of a multiple of 16 bytes."""
        found = []
        if self.spilled_bytes > SPILL_ALLOWED:
            found.append(f"spills {self.spilled_bytes} bytes a thread")
        if aligned_rows and self.narrow_loads:
            found.append(f"loads rows in {self.narrow_loads} instructions below {WIDE} bits")
        if self.shared_bytes > SHARED_BYTES[self.target]:
            found.append(f"takes {self.shared_bytes} of {SHARED_BYTES[self.target]} shared bytes")
        if self.half_tables and self.fp32_dots:
            found.append(f"widens the operands of {self.fp32_dots} tl.dot to fp32")
        if self.dots > self.fp32_dots and not self.matrix:
            found.append(f"has {self.dots} tl.dot and no matrix instruction")
        return found


HEADER = (
    "| kernel | target | warps | stages | registers | spilled B | shared B | row loads of 128 bits "
    "| narrower | other loads | tl.dot | matrix instructions |",
    "|---|---|" + "---:|" * 9 + "---|",
)


class _NoDevice:
    """A Triton driver of a GPU that is not there, which does for every step before a launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # the key of a kernel's caches, which must not mix targets

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0


def compiled(target: str, launch: Callable[[], object]) -> dict[str, Any]:
    """Return the kernels that ``launch`` would launch on ``target``, by hash.

    Triton itself specialises on the arguments and compiles: only the launch is left out.
    """
    kernels: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernels[kernel.hash] = kernel
        return kernel

    driver.set_active(_NoDevice(TARGETS[target]))
    hip = "7" if TARGETS[target].backend == "hip" else None  # launchers choose blocks by it
    # A cache of its own: Triton's may hold another checkout's compilation, with that one's files.
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(torch.version, "hip", hip),
    ):
        launch()
    if not kernels:
        raise RuntimeError("nothing was launched; is TRITON_INTERPRET set?")
    return kernels


def inspect(kernel: Any) -> Machine:
    """Read a compiled kernel's machine code."""
    read = _read_hip if "amdgcn" in kernel.asm else _read_cuda
    target = next(name for name, t in TARGETS.items() if t == kernel.metadata.target)
    dots = _DOT.findall(kernel.asm["ttir"])
    return Machine(
        kernel=kernel.metadata.name,
        target=target,
        warps=kernel.metadata.num_warps,
        stages=kernel.metadata.num_stages,
        shared_bytes=kernel.metadata.shared,
        half_tables=_HALF_TABLE.search(kernel.asm["ttir"]) is not None,
        dots=len(dots),
        fp32_dots=dots.count("f32"),
        **read(kernel.asm),
    )


def _read_cuda(asm: dict[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        sass = _output(knobs.nvidia.nvdisasm.path, "-c", cubin.name)
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name)
    resources = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"] + resources["LOCAL"],
        # ptxas keeps the widths of loads; SASS has lost the lines of those in inline assembly.
        **_count_loads(asm["ptx"], _ptx_bits),
        "matrix": dict(Counter(_SASS_MATRIX.findall(sass))),
    }


def _read_hip(asm: dict[str, Any]) -> dict[str, Any]:
    text = asm["amdgcn"]

    def metadata(name: str) -> int:
        found = re.search(rf"\s\.{name}:\s+(\d+)", text)
        assert found is not None, name
        return int(found[1])

    return {
        "registers": metadata("vgpr_count"),
        "spilled_bytes": metadata("private_segment_fixed_size"),
        **_count_loads(text, _gcn_bits),
        "matrix": dict(Counter(_GCN_MATRIX.findall(text))),
    }


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _ptx_bits(instruction: str) -> int:
    """Return the bits that a thread loads from global memory; 0 where it loads none."""
    if load := _PTX_LOAD.search(instruction):
        return int(load["n"] or 1) * int(load["bits"])
    if copy := _PTX_COPY.search(instruction):
        return WIDE if copy["bulk"] else 8 * int(copy["bytes"], base=0)
    return 0


def _gcn_bits(instruction: str) -> int:
    """Return what ``_ptx_bits`` does; ubyte, ushort and short_d16 load a part of a dword."""
    load = _GCN_LOAD.search(instruction)
    if load is None:
        return 0
    return 16 if load["part"] else 32 * int(load["n"] or 1)


def _count_loads(assembly: str, bits_of: Callable[[str], int]) -> dict[str, int]:
    files: dict[str, str] = {}
    count: Counter[str] = Counter()
    of_row = in_block = located = False
    for text in assembly.splitlines():
        if declared := _FILE.match(text):
            files[declared["id"]] = str(Path(declared["folder"], declared["name"] or ""))
    for text in assembly.splitlines():
        if at := _LINE.match(text):
            # The first holds for all of a block: LLVM adds one for each line of inline assembly.
            if not (in_block and located):
                of_row = int(at["line"]) in _row_lines(files[at["id"]])
            located = True
        elif "inline asm" in text:
            in_block, located = "begin" in text, False
        elif bits := bits_of(text):
            count["scalar" if not of_row else "wide" if bits >= WIDE else "narrow"] += 1
    return {f"{kind}_loads": count[kind] for kind in ("wide", "narrow", "scalar")}


@functools.cache
def _row_lines(file: str) -> frozenset[int]:
    """Return the lines of a Python file that belong to a ``tl.load`` from a table of rows."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            names = set(re.findall(r"\w+", ast.unparse(node.args[0])))
            if ROW_TABLES & {name.removeprefix("p_") for name in names}:
                assert node.end_lineno is not None
                lines.update(range(node.lineno, node.end_lineno + 1))
    return frozenset(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launches", nargs="+", metavar="FILE:FUNCTION")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    arguments = parser.parse_args()
    machines = []
    for launches in arguments.launches:
        file, _, function = launches.rpartition(":")
        # Debug information names files as they were imported: by an absolute path.
        sys.path.insert(0, str(Path(file).resolve().parent))
        launch = getattr(importlib.import_module(Path(file).stem), function)
        for target in arguments.targets:
            machines += [inspect(kernel) for kernel in compiled(target, launch).values()]
    print("\n".join([*HEADER, *(machine.row() for machine in machines)]))
    found = [f"{m.kernel} on {m.target} {c}" for m in machines for c in m.complaints()]
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
