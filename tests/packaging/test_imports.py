"""Imports point one way: saif_kernels <- saif_fast <- integrations, and heavy packages stay out of
module level. Inside saif_vllm the rooms of its processes know none of one another."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.import_graph import find_circles, import_graph, read_sources

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


# The code of one process each: a room imports the ground floor and itself. Faces are on top.
ROOMS = ("frontend", "core", "worker")
FACES = {"saif_vllm", "arguments", "engine_residuals", "plugin", "runtime", "serve"}


def room(module: str) -> str:
    """Return the room of a module of saif_vllm: one of ROOMS, "face" or "ground"."""
    first = module.removeprefix("saif_vllm.").partition(".")[0]
    if first in ROOMS:
        return first
    return "face" if first in FACES else "ground"


def trespasses(graph: Mapping[str, Set[str]]) -> set[tuple[str, str]]:
    """Return the imports of a room or of the ground floor that leave both."""
    return {
        (name, other)
        for name, others in graph.items()
        for other in others
        if room(name) != "face" and room(other) not in (room(name), "ground")
    }


def graph_of(package: str) -> dict[str, set[str]]:
    return import_graph(read_sources(ROOT / RULES[package][0] / package))


def test_no_process_imports_the_room_of_another() -> None:
    graph = graph_of("saif_vllm")
    assert {room(name) for name in graph} == {*ROOMS, "face", "ground"}
    assert trespasses(graph) == set()


@pytest.mark.parametrize("package", ["saif_fast", "saif_vllm", "saif_kernels"])
def test_there_is_no_import_circle(package: str) -> None:
    graph = graph_of(package)
    assert sum(map(len, graph.values())) > len(graph)
    assert find_circles(graph) == []


def test_the_folders_of_saif_fast_have_no_import_circle() -> None:
    # A file beside the folders counts as one, and saif_fast itself is the public face.
    graph: dict[str, set[str]] = {}
    for name, others in graph_of("saif_fast").items():
        own, *found = (".".join(module.split(".")[:2]) for module in (name, *others))
        graph.setdefault(own, set()).update(set(found) - {own})
    assert find_circles(graph) == []


CONFIG, CORE_ROOM = "saif_vllm.config", "saif_vllm.core.residency"


@pytest.mark.parametrize(
    ("name", "source", "allowed"),
    [
        ("saif_vllm.core.patches", "from saif_vllm import config", True),
        ("saif_vllm.core.patches", "from saif_vllm.core.residency import Residency", True),
        ("saif_vllm.core.patches", "def f():\n    from saif_vllm import plugin", False),
        ("saif_vllm.plugin", "def f():\n    from saif_vllm.core import residency", True),
        ("saif_vllm.worker.batch", "def f():\n    from saif_vllm.core import residency", False),
        ("saif_vllm.frontend.http", "import saif_vllm.core.residency", False),
        ("saif_vllm.request", "from saif_vllm.core.residency import Residency", False),
        ("saif_vllm.worker.batch", "if TYPE_CHECKING:\n    import saif_vllm.core.residency", True),
    ],
)
def test_who_trespasses_is_seen(name: str, source: str, allowed: bool) -> None:
    graph = import_graph({CONFIG: "", CORE_ROOM: "", "saif_vllm.plugin": "", name: source})
    assert (trespasses(graph) == set()) == allowed


def test_a_circle_through_a_function_is_seen() -> None:
    config = "def f():\n    from saif_vllm.core import residency"
    circle = import_graph({CONFIG: config, CORE_ROOM: "from saif_vllm.config import x"})
    assert circle == {CONFIG: {CORE_ROOM}, CORE_ROOM: {CONFIG}}
    assert find_circles(circle) == [{CONFIG, CORE_ROOM}]
