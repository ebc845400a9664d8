"""Methods, each a name and its candidates: everything that an evaluation compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from saif_fast.latent_set import LatentSet

Parameters: TypeAlias = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Candidate:
    """One way to make the model follow an instruction. By default it does nothing.

    Attributes:
        latent_set: the set that steers.
        strength: the set's strength.
        options: ``saif_scope`` and the like, as in a request.
        logit_bias: token ids, each with a value added to its logit at every generated token.
        instructed: whether the prompt contains the instruction.
        parameters: what tells this candidate from the method's others (k, beta, ...), for results.
    """

    latent_set: LatentSet | None = None
    strength: float = 1.0
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    logit_bias: Mapping[int, float] | None = None
    instructed: bool = False
    parameters: Parameters = field(default_factory=dict)

    @property
    def is_nothing(self) -> bool:
        """Whether the model is left as it is, and not asked either."""
        return self.latent_set is None and self.logit_bias is None and not self.instructed


@dataclass(frozen=True)
class Method:
    """A name and its candidates; the best one on the select contents is reported."""

    name: str
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError(f"method {self.name}: expected at least one candidate, got none")


def unsteered() -> Method:
    """Return the method that leaves the model as it is."""
    return Method("unsteered", (Candidate(),))


def prompted() -> Method:
    """Return the method that puts the instruction into the prompt."""
    return Method("prompted", (Candidate(instructed=True),))


def log_grid(low: float, high: float, n: int) -> list[float]:
    """Return ``n`` values from ``low`` to ``high``, each the same factor above the one before."""
    return [float(f"{value:.4g}") for value in np.geomspace(low, high, n)]


def strengths(
    name: str,
    latent_set: LatentSet,
    values: Iterable[float],
    scopes: Sequence[str] = ("generated",),
) -> Method:
    """Make a method of one set at several strengths, in several scopes.

    Args:
        name: the method's name.
        latent_set: the set that steers.
        values: its strengths.
        scopes: its scopes; the number of candidates is that of strengths times that of scopes.

    Examples:
        >>> vector = diff_in_means(activations, 20)
        >>> len(strengths("diff_in_means", vector, log_grid(0.1, 10, 60)).candidates)
        60
    """
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
    """Make a method of one direction in token space, at several lengths.

    ``largest`` are the largest absolute biases, in logits, of the candidates.

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
    """Return the number of candidates that each of ``methods`` has.

    Raises:
        ValueError: the numbers differ. A method with more candidates is lucky more often.
    """
    sizes = {method.name: len(method.candidates) for method in methods}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"candidates: expected the same number for every method, got {sizes}")
    return next(iter(sizes.values()), 0)
