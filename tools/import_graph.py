"""The import graph of a package: ``python -m tools.import_graph integrations/saif_vllm``.

Prints each floor, lowest first: modules that import only modules of lower floors. Then the numbers
of modules and imports, and the circles, of which there should be none. An import inside a function
counts; one for a type checker only does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def read_sources(folder: Path) -> dict[str, str]:
    """Return the sources of the package ``folder`` by the names of its modules."""
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): (
            path.read_text(encoding="utf-8")
        )
        for path in folder.rglob("*.py")
    }


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return what each module imports of the others.

    Args:
        sources: by a module's name, all of one package.
    """
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        candidates = imported_modules(ast.parse(source))
        found = {
            next((module for module in either if module in sources), name) for either in candidates
        }
        graph[name] = found - {name}
    return graph


def imported_modules(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield what an import may be of: a module; or a name's own module, else that it comes from."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name,) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "a relative import"
            yield from (
                (f"{child.module}.{alias.name}", child.module or "") for alias in child.names
            )
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            yield from imported_modules(child)


def find_circles(graph: Mapping[str, Set[str]]) -> list[set[str]]:
    """Return the largest sets of modules that import each other, directly or not."""
    circles: list[set[str]] = []
    reached = {name: _reach(graph, name) for name in graph}
    for name in graph:
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and circle not in circles:
            circles.append(circle)
    return circles


def _reach(graph: Mapping[str, Set[str]], name: str) -> set[str]:
    found: set[str] = set()
    queue = list(graph[name])
    while queue:
        other = queue.pop()
        if other not in found:
            found.add(other)
            queue += graph[other]
    return found


def floors(graph: Mapping[str, Set[str]]) -> list[set[str]]:
    """Return the modules by floor, lowest first.

    Raises:
        graphlib.CycleError: there is a circle, which it names.
    """
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    found = []
    while sorter.is_active():
        found.append(set(sorter.get_ready()))
        sorter.done(*found[-1])
    return found


def main(folders: list[str]) -> None:
    """Print the graph of each package."""
    for folder in folders:
        graph = import_graph(read_sources(Path(folder)))
        try:
            for i, names in enumerate(floors(graph)):
                print(f"{i:2d}  {' '.join(sorted(names))}")
        except CycleError:
            print("no floors: there are circles")
        circles = find_circles(graph)
        print(
            f"{folder}: {len(graph)} modules, {sum(map(len, graph.values()))} imports of each other"
        )
        print(f"circles: {len(circles)}", *(f"of {len(c)}: {' '.join(sorted(c))}" for c in circles))


if __name__ == "__main__":
    main(sys.argv[1:])
