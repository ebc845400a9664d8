"""Search of a vLLM that is not installed for the names and parameters that the plugin relies on.

An unpacked source tree is read by `ast` alone, so a version whose torch cannot be installed here
can be checked too. Names are followed through imports, and classes through their bases, inside the
tree. The plugin patches nothing outside of it (torch, the standard library).
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from saif_vllm.seams import Attribute, Seam

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function


class SourceTree:
    """The modules under `root`, a folder that could be on `sys.path`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, _Module | None] = {}

    def missing(self, seam: Seam | Attribute) -> str | None:
        """Say in a few words what is amiss with `seam`; None: it is as expected."""
        if self.module(seam.module) is None:
            return "no such module"
        if isinstance(seam, Attribute):
            cls = self.find(seam.module, seam.owner)
            if cls is None:
                return f"no class {seam.owner}"
            return None if self.has(cls, seam.name) else "not there"
        if not seam.owner:
            found = self.find(seam.module, seam.name)
        else:
            owner = self.find(seam.module, seam.owner)
            if not isinstance(owner, _Found) or not isinstance(owner.node, ast.ClassDef):
                return f"no class {seam.owner}"
            found = self.member(owner, seam.name)
        if found is None:
            return "not there"
        if not isinstance(found.node, Function):
            return "not a function"
        got = parameters(found.node)
        if tuple(got[: len(seam.parameters)]) != tuple(seam.parameters):
            return f"got ({', '.join(got)})"
        arguments = found.node.args
        named = {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
        absent = [name for name in seam.keywords if name not in named]
        return f"no {', '.join(absent)} in ({', '.join(got)})" if absent else None

    def module(self, name: str) -> _Module | None:
        if name not in self._modules:
            path = self.root.joinpath(*name.split("."))
            files = [path / "__init__.py", path.with_suffix(".py")]
            file = next((file for file in files if file.is_file()), None)
            self._modules[name] = None if file is None else _Module(name, file)
        return self._modules[name]

    def find(self, module: str, name: str) -> _Found | None:
        """Find the class or function `module.name`, through any number of imports."""
        there = self.module(module)
        node = None if there is None else there.names.get(name)
        if isinstance(node, Definition):
            return _Found(module, node)
        if isinstance(node, _Imported) and (node.module, node.name) != (module, name):
            return self.find(node.module, node.name)
        return None

    def member(self, owner: _Found, name: str) -> _Found | None:
        """Find a class's own or inherited member: bases left to right, depth first."""
        assert isinstance(owner.node, ast.ClassDef)
        own = _names(owner.node.body, owner.module, is_package=False).get(name)
        if isinstance(own, Definition):
            return _Found(owner.module, own)
        for base in owner.node.bases:
            found = self._base(owner.module, base)
            if found is not None and isinstance(found.node, ast.ClassDef):
                inherited = self.member(found, name)
                if inherited is not None:
                    return inherited
        return None

    def has(self, owner: _Found, name: str) -> bool:
        """Return whether a class or one of its bases declares or sets an attribute."""
        assert isinstance(owner.node, ast.ClassDef)
        if any(_declares(statement, name) for statement in _statements(owner.node.body)):
            return True
        if any(f"self.{name}" in _targets(node) for node in ast.walk(owner.node)):
            return True
        bases = [self._base(owner.module, base) for base in owner.node.bases]
        return any(
            isinstance(base.node, ast.ClassDef) and self.has(base, name) for base in bases if base
        )

    def _base(self, module: str, base: ast.expr) -> _Found | None:
        if isinstance(base, ast.Subscript):  # a generic class
            return self._base(module, base.value)
        if isinstance(base, ast.Name):
            return self.find(module, base.id)
        if isinstance(base, ast.Attribute):
            there = self.module(module)
            assert there is not None
            prefix = ast.unparse(base.value)
            alias = there.names.get(prefix)
            return self.find(alias.path if isinstance(alias, _Imported) else prefix, base.attr)
        return None


def parameters(function: Function) -> list[str]:
    """Return names in the order of `inspect.signature`, without the `cls` of a class method."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if any(isinstance(d, ast.Name) and d.id == "classmethod" for d in function.decorator_list):
        del positional[0]
    last = [arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [argument.arg for argument in [*positional, *last] if argument is not None]


def _declares(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, Function):
        return statement.name == name
    return name in _targets(statement)


def _targets(node: ast.AST) -> list[str]:
    """Return what an assignment gives a value or a type to."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = [e for t in node.targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [ast.unparse(target) for target in targets]


class _Found:
    """A definition and the module that its own names are looked up in."""

    def __init__(self, module: str, node: Definition) -> None:
        self.module = module
        self.node = node


class _Imported:
    """`name` of `module`; without a name, the module itself."""

    def __init__(self, module: str, name: str = "") -> None:
        self.module = module
        self.name = name
        self.path = f"{module}.{name}" if name else module


class _Module:
    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.file = file

    @cached_property
    def names(self) -> dict[str, Definition | _Imported]:
        body = ast.parse(self.file.read_text(encoding="utf-8")).body
        return _names(body, self.name, is_package=self.file.name == "__init__.py")


def _names(
    body: Sequence[ast.stmt], module: str, *, is_package: bool
) -> dict[str, Definition | _Imported]:
    """Return what a body defines or imports when it runs; of several, the last."""
    found: dict[str, Definition | _Imported] = {}
    for statement in _statements(body):
        if isinstance(statement, Definition):
            found[statement.name] = statement
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.asname:
                    found[alias.asname] = _Imported(alias.name)
        elif isinstance(statement, ast.ImportFrom):
            source = statement.module or ""
            if statement.level:
                parts = module.split(".")
                package = parts[: len(parts) - statement.level + is_package]
                source = ".".join([*package, *filter(None, [source])])
            for alias in statement.names:
                found[alias.asname or alias.name] = _Imported(source, alias.name)
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If):
            if ast.unparse(statement.test).rpartition(".")[2] != "TYPE_CHECKING":
                yield from _statements(statement.body)
            yield from _statements(statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from _statements([*statement.body, *statement.orelse, *statement.finalbody])
        else:
            yield statement


def unpack(wheel: Path, root: Path) -> None:
    """Extract the Python files of a wheel under `root`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root, [name for name in archive.namelist() if name.endswith(".py")])
