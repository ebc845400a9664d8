"""What generates text: one protocol, found through the entry point group ``saif_fast.runtimes``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory

ENTRY_POINTS = "saif_fast.runtimes"
# Our own runtimes, the faster first; the extra that brings the package of a runtime's name.
_EXTRAS = {"vllm": "vllm", "transformers": "identify"}

Sets: TypeAlias = SetDirectory | Mapping[str, LatentSet]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One greedy generation.

    Attributes:
        prompt: the final text, chat template applied; the runtime adds no second BOS.
        saif: sets and strengths, ``"french*0.8 + formal*0.4"``; None is unsteered.
        options: ``saif_scope``, ``saif_start``, ``saif_stop``, ``saif_decay`` as in a vLLM request.
        logit_bias: token id to a value added to its logit at every generated token.
        max_tokens: generated tokens, at most.
    """

    prompt: str
    saif: str | None = None
    options: dict[str, str | int | float] = {}
    logit_bias: dict[int, float] | None = None
    max_tokens: int = 64

    @property
    def extra_args(self) -> dict[str, str | int | float]:
        """The steering keys as a vLLM request carries them (``extra_args``); empty is unsteered."""
        return {} if self.saif is None else {"saif": self.saif, **self.options}


class Generation(msgspec.Struct, frozen=True):
    """What was generated: text without special tokens, and token ids with the final EOS, if any."""

    text: str
    token_ids: list[int]


class Runtime(Protocol):
    """A model that can be steered. Requests of one call may differ in everything."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Greedy generations in the order of ``requests``."""

    def close(self) -> None:
        """Give back the memory and the processes; the runtime cannot be used afterwards."""


def installed_runtimes() -> list[str]:
    """Runtimes whose packages are installed, the faster first; transformers where none is."""
    found = [name for name in _EXTRAS if find_spec(name) is not None]
    return found or ["transformers"]


def open_runtime(name: str, model: str | Path, sets: Sets, **options: Any) -> Runtime:
    """Start the runtime ``name`` ("vllm", "transformers") for ``model`` with the sets ``sets``.

    Raises:
        ValueError: as :func:`find_runtime`.
    """
    return find_runtime(name)(model, sets, **options)


def find_runtime(name: str) -> Callable[..., Runtime]:
    """What starts the runtime ``name``, of ``model``, ``sets`` and options.

    Raises:
        ValueError: no such runtime is installed, or the package it needs is missing.
    """
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise ValueError(f"runtime: expected one of {sorted(found)}, got {name!r}")
    try:
        start: Callable[..., Runtime] = found[name].load()
        # Ours import their package when they start, which may be after hours of work.
        if name in _EXTRAS and find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    except ModuleNotFoundError as missing:
        # A missing module of our own is a broken installation, and no package to install.
        if missing.name != name or name not in _EXTRAS:
            raise
        raise ValueError(
            f"runtime: {name!r} needs the package {missing.name}; "
            f"install it with: pip install 'saif-fast[{_EXTRAS[name]}]'"
        ) from missing
    return start
