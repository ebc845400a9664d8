"""Imports point one way: saif_kernels <- saif_fast <- integrations, and heavy packages stay out of
module level."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {Requirement(line).name for line in PROJECT["dependencies"]}
OURS = {"saif_kernels", "saif_fast", "saif_vllm", "saif_transformers"}
STDLIB = set(sys.stdlib_module_names)

# package: its folder, what its modules may import when they are imported, and what no line of it
# may import, be it inside a function.
RULES: dict[str, tuple[str, set[str], set[str]]] = {
    "saif_kernels": ("kernels", {"torch", "triton"}, OURS - {"saif_kernels"}),
    "saif_fast": ("", CORE | {"saif_kernels"}, {"saif_vllm", "saif_transformers"}),
    "saif_transformers": (
        "integrations",
        CORE | {"saif_kernels", "saif_fast", "transformers"},
        {"saif_vllm", "vllm"},
    ),
    "saif_vllm": (
        "integrations",
        CORE | {"saif_kernels", "saif_fast", "vllm"},
        {"saif_transformers"},
    ),
}


def imported(node: ast.AST, *, runs: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield (top-level package, whether it is imported with the module) for every import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name.partition(".")[0], runs
        elif isinstance(child, ast.ImportFrom):
            if child.level == 0 and child.module is not None:
                yield child.module.partition(".")[0], runs
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(child, runs=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imported(child, runs=False)
        else:
            yield from imported(child, runs=runs)


def violations(package: str, source: str) -> set[str]:
    _, allowed, never = RULES[package]
    allowed = allowed | STDLIB | {package}
    found = set(imported(ast.parse(source)))
    return {name for name, runs in found if name in never or (runs and name not in allowed)}


@pytest.mark.parametrize("package", RULES)
def test_import_direction(package: str) -> None:
    files = sorted((ROOT / RULES[package][0] / package).rglob("*.py"))
    assert files
    bad = {
        path.relative_to(ROOT).as_posix(): names
        for path in files
        if (names := violations(package, path.read_text(encoding="utf-8")))
    }
    assert bad == {}


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("saif_kernels", "import torch, math\nfrom . import x", set()),
        ("saif_kernels", "import numpy", {"numpy"}),
        ("saif_kernels", "def f():\n    from saif_fast.sae import x", {"saif_fast"}),
        ("saif_fast", "def f():\n    import vllm", set()),
        ("saif_fast", "try:\n    import sae_lens.saes\nexcept ImportError: pass", {"sae_lens"}),
        ("saif_fast", "if TYPE_CHECKING:\n    import transformers", set()),
        ("saif_fast", "class A:\n    def f(self):\n        import saif_vllm", {"saif_vllm"}),
        ("saif_transformers", "import saif_vllm", {"saif_vllm"}),
    ],
)
def test_the_scanner_finds_what_it_should(package: str, source: str, expected: set[str]) -> None:
    assert violations(package, source) == expected


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # vLLM imports it in every process, and swallows it when that fails.
        ("saif_vllm.plugin", {"torch", "vllm", "saif_fast", "saif_kernels"}),
        ("saif_kernels", {"saif_fast", "transformers", "vllm"}),
        ("saif_fast.cli", {"saif_transformers", "saif_vllm", "sae_lens", "transformers", "vllm"}),
    ],
)
def test_importing_it_stays_light(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({unwanted!r} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.split() == []


def modules_imported(path: Path) -> set[str]:
    """The modules that a Python file imports, be it inside a function: full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # ``from package import name``: a module where there is one of this name.
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                base = ROOT.joinpath(*name.split("."))
                is_module = base.with_suffix(".py").is_file() or base.is_dir()
                found.add(name if is_module else node.module)
    return found


@pytest.mark.parametrize("grain", ["files", "rooms"])
def test_saif_fast_has_no_import_circle(grain: str) -> None:
    """A room is a folder, or a file beside the folders; ``saif_fast`` itself is the public face."""
    graph: dict[str, set[str]] = {}
    for path in sorted((ROOT / "saif_fast").rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found = {name for name in modules_imported(path) if name.split(".")[0] == "saif_fast"}
        if grain == "rooms":
            own, *found = (".".join(name.split(".")[:2]) for name in (own, *found))
        graph.setdefault(own, set()).update(set(found) - {own})
    tuple(TopologicalSorter(graph).static_order())  # CycleError names the circle
