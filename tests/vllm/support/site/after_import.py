"""Run a function on a module as soon as it has been imported, whoever imports it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_hooks: dict[str, list[Callable[[Any], None]]] = {}


def after_import(name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def register(hook: Callable[[Any], None]) -> Callable[[Any], None]:
        _hooks.setdefault(name, []).append(hook)
        return hook

    return register


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in _hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for hook in _hooks[name]:
                hook(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
