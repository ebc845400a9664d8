"""A method is a name and its candidates; everything an evaluation compares has this form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from saif_fast.latent_set import LatentSet

Parameters: TypeAlias = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Candidate:
    """One way to make the model follow an instruction; by default it does nothing.

    Attributes:
        latent_set: the set that steers.
        strength: its strength.
        options: ``saif_scope`` and the like, as in a request.
        logit_bias: token id to a value added to its logit at every generated token.
        instructed: whether the prompt contains the instruction.
        parameters: what distinguishes this candidate, for the results (k, beta, scale, ...).
    """

    latent_set: LatentSet | None = None
    strength: float = 1.0
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    logit_bias: Mapping[int, float] | None = None
    instructed: bool = False
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of the table: the best of its candidates on the select contents is reported."""

    name: str
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError(f"method {self.name}: expected at least one candidate, got none")


def unsteered() -> Method:
    """The model as it is."""
    return Method("unsteered", (Candidate(),))


def prompted() -> Method:
    """The instruction in the prompt."""
    return Method("prompted", (Candidate(instructed=True),))


def log_grid(low: float, high: float, n: int) -> list[float]:
    """``n`` values from ``low`` to ``high``, each the same factor above the one before."""
    return [float(f"{value:.4g}") for value in np.geomspace(low, high, n)]


def strengths(
    name: str,
    latent_set: LatentSet,
    values: Iterable[float],
    scopes: Sequence[str] = ("generated",),
) -> Method:
    """One set at several strengths, and in several scopes."""
    listed = list(values)
    return Method(
        name,
        tuple(
            Candidate(
                latent_set=latent_set,
                strength=strength,
                options={} if scope == "generated" else {"saif_scope": scope},
                parameters={"strength": strength, "scope": scope},
            )
            for scope in scopes
            for strength in listed
        ),
    )


def logit_biases(name: str, bias: Mapping[int, float], largest: Iterable[float]) -> Method:
    """One direction in token space; its largest absolute bias is each of ``largest``, in logits.

    Raises:
        ValueError: the bias is empty or zero.
    """
    peak = max((abs(value) for value in bias.values()), default=0.0)
    if peak == 0.0:
        raise ValueError(f"method {name}: expected a bias that is not zero, got {len(bias)} zeros")
    return Method(
        name,
        tuple(
            Candidate(
                logit_bias={token: value * top / peak for token, value in bias.items()},
                parameters={"largest_bias": top, "tokens": len(bias)},
            )
            for top in largest
        ),
    )


def check_equal_search(methods: Iterable[Method]) -> int:
    """The number of candidates that each of ``methods`` has.

    Raises:
        ValueError: they differ; a method with more candidates is more often lucky.
    """
    sizes = {method.name: len(method.candidates) for method in methods}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"candidates: expected the same number for every method, got {sizes}")
    return next(iter(sizes.values()), 0)
