"""Runtimes, which generate text and tell how likely one is: a protocol, found by entry points."""

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
# Our own runtimes, the faster first. Each needs the package of its name, which this extra brings.
_EXTRAS = {"vllm": "vllm", "transformers": "identify"}

Sets: TypeAlias = SetDirectory | Mapping[str, LatentSet]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One greedy generation.

    Attributes:
        prompt: the final text, after the chat template. The runtime adds no second BOS.
        saif: sets and strengths, ``"french*0.8 + formal*0.4"``; None = unsteered.
        options: ``saif_scope``, ``saif_start``, ``saif_stop``, ``saif_decay`` as in a vLLM request.
        logit_bias: token ids, each with a value added to its logit at every generated token.
        max_tokens: number of generated tokens, at most.
    """

    prompt: str
    saif: str | None = None
    options: dict[str, str | int | float] = {}
    logit_bias: dict[int, float] | None = None
    max_tokens: int = 64

    @property
    def extra_args(self) -> dict[str, str | int | float]:
        """The steering keys as vLLM's ``extra_args`` carry them; empty = unsteered."""
        return {} if self.saif is None else {"saif": self.saif, **self.options}


class LogProbRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A text whose probability is asked for, after a prompt.

    There is no scope: the text is part of the prompt of one forward, so its tokens and those before
    them are either all steered or all unsteered.

    Attributes:
        prompt: the final text, after the chat template. The runtime adds no second BOS.
        continuation: the text. Its tokens are the tokenizer's, without special tokens, and
            begin where the prompt's end.
        saif: sets and strengths, ``"french*0.8 + formal*0.4"``; None = unsteered.
    """

    prompt: str
    continuation: str
    saif: str | None = None

    @property
    def extra_args(self) -> dict[str, str]:
        """The steering keys as vLLM's ``extra_args`` carry them; empty = unsteered."""
        return {} if self.saif is None else {"saif": self.saif, "saif_scope": "all"}


class Generation(msgspec.Struct, frozen=True):
    """Generated text without special tokens, and its token ids with the final EOS, if any."""

    text: str
    token_ids: list[int]


class Runtime(Protocol):
    """A model that can be steered. The requests of one call may differ in everything."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate greedily; generations are in the order of ``requests``."""

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        """Return the natural-log probability of each token of each continuation, in order."""

    def close(self) -> None:
        """Release memory and processes. The runtime cannot be used afterwards."""


def installed_runtimes() -> list[str]:
    """List the runtimes whose packages are installed, the faster first; else transformers."""
    found = [name for name in _EXTRAS if find_spec(name) is not None]
    return found or ["transformers"]


def open_runtime(name: str, model: str | Path, sets: Sets, **options: Any) -> Runtime:
    """Start a runtime.

    Args:
        name: the runtime's, such as "vllm" or "transformers".
        model: a directory or a hub name.
        sets: the sets that a request may name.
        options: of the runtime, such as those of ``saif_vllm.runtime.VllmRuntime``.

    Raises:
        ValueError: as :func:`find_runtime`.

    Examples:
        >>> runtime = open_runtime("vllm", "google/gemma-2-2b-it", SetDirectory("sets"))
        >>> runtime.generate([GenerationRequest(prompt=prompt, saif="french*1.2")])[0].text
    """
    return find_runtime(name)(model, sets, **options)


def find_runtime(name: str) -> Callable[..., Runtime]:
    """Find the callable of ``model``, ``sets`` and options that starts the runtime ``name``.

    Raises:
        ValueError: no such runtime is installed, or the package that it needs is missing.
    """
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise ValueError(f"runtime: expected one of {sorted(found)}, got {name!r}")
    try:
        start: Callable[..., Runtime] = found[name].load()
        # Our runtimes import their package only when they start, perhaps after hours of work.
        if name in _EXTRAS and find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    except ModuleNotFoundError as missing:
        # A missing module of our own means a broken installation, which no extra repairs.
        if missing.name != name or name not in _EXTRAS:
            raise
        raise ValueError(
            f"runtime: {name!r} needs the package {missing.name}; "
            f"install it with: pip install 'saif-fast[{_EXTRAS[name]}]'"
        ) from missing
    return start
