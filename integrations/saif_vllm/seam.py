"""What is relied on at one place of vLLM, and the check of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Seam(NamedTuple):
    """A function of vLLM, the parameters that it begins with, and others that are given by name."""

    module: str
    owner: str  # the class; "" of a function of the module
    name: str
    parameters: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    def check(self, owner: Any) -> Callable[..., Any]:
        """The function as ``owner``, a class or the module, has it.

        Raises:
            RuntimeError: there is none, or its parameters are others. ``**kwargs`` does not count
                as a keyword: it would swallow one that has got another name.
        """
        function: Callable[..., Any] | None = getattr(owner, self.name, None)
        path = (
            owner.__name__
            if inspect.ismodule(owner)
            else f"{owner.__module__}.{owner.__qualname__}"
        )
        where = f"{path}.{self.name}"
        if not callable(function):
            raise RuntimeError(f"vLLM seam {where}: expected a function, got nothing")
        found = inspect.signature(function).parameters
        got = tuple(found)
        if got[: len(self.parameters)] != self.parameters:
            raise RuntimeError(
                f"vLLM seam {where}: expected the parameters ({', '.join(self.parameters)}, ...), "
                f"got ({', '.join(got)})"
            )
        named = {name for name, parameter in found.items() if parameter.kind in _BY_NAME}
        if not named.issuperset(self.keywords):
            raise RuntimeError(
                f"vLLM seam {where}: expected the keywords {', '.join(self.keywords)}, "
                f"got ({', '.join(got)})"
            )
        return function


def check_version(lowest: tuple[int, int], beyond: tuple[int, int]) -> None:
    """Raise RuntimeError unless the installed vLLM is ``>= lowest`` and ``< beyond``."""
    from vllm.version import __version__, __version_tuple__

    if not lowest <= tuple(__version_tuple__[:2]) < beyond:
        raise RuntimeError(
            f"steering supports vLLM >= {lowest[0]}.{lowest[1]}, < {beyond[0]}.{beyond[1]}, "
            f"got {__version__}"
        )
