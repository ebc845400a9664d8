"""The space that is searched: a grid per method, from which each gets points by the same rule."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor

from saif_fast.evaluate.candidates import projection, random_latents, saif_set
from saif_fast.evaluate.methods import Candidate, log_grid
from saif_fast.identify import ActivationSet, LatentStatistics, diff_in_means
from saif_fast.identify.activations import Reading
from saif_fast.identify.rankers import AUROC, CONSISTENCY, MEAN_DIFFERENCE, Ranker, output_score
from saif_fast.identify.statistics import Over
from saif_fast.latent_set import LatentSet
from saif_fast.logit_bias import Unembedding, largest
from saif_fast.sae import SparseAutoencoder

# Which tokens a set steers unless a request says otherwise, by a name for tables. Most replies go
# on as they began: a set that steers the beginning alone does least harm to the rest.
WINDOWS: Mapping[str, Mapping[str, str | int]] = {
    "generated": {},
    "decaying": {"saif_decay": "0.05"},
    "decaying fast": {"saif_decay": "0.1"},
    "first 4": {"saif_stop": 4},
    "all, first 2": {"saif_scope": "all", "saif_stop": 2},
    "all, decaying fast": {"saif_scope": "all", "saif_decay": "0.1"},
}
_STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MULTIPLES = (0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
_KS = (1, 3, 5, 10, 15, 30, 60)
_LIVE = ("clamp", "at_least", "add@gated", "clamp@gated")
_BIASES = log_grid(0.5, 50.0, 12)
_BIAS_TOKENS = (16, 64, 256, 1024)  # vLLM's V2 model runner takes no more per request


def check_windows(windows: Sequence[str]) -> None:
    """Raise ValueError unless all are names of :data:`WINDOWS`."""
    for window in windows:
        if window not in WINDOWS:
            raise ValueError(f"window: expected one of {', '.join(WINDOWS)}, got {window!r}")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of an instruction before any candidate is tried.

    Attributes:
        readings: the activations of its pairs, by where they are read.
        layers: layers for dense vectors.
        saes: SAEs, each of one layer.
        unembedding: the model's map to logits.
        wanted: [vocabulary] how much more often each token occurs in replies with the instruction.
        shift: [vocabulary] mean change of the logits by the instruction, at the last prompt token.
        allow_mismatch: take SAEs of another model.
    """

    readings: Mapping[Reading, ActivationSet]
    layers: Sequence[int]
    saes: Sequence[SparseAutoencoder]
    unembedding: Unembedding
    wanted: Tensor
    shift: Tensor
    allow_mismatch: bool = False

    @cached_property
    def rankers(self) -> dict[str, Ranker]:
        """The rankers by name."""
        output = output_score(self.unembedding, self.wanted)
        return {ranker.name: ranker for ranker in (CONSISTENCY, MEAN_DIFFERENCE, AUROC, output)}

    @cached_property
    def sources(self) -> list[str]:
        """The sources of logit biases that raise any token."""
        shifts = {"logits": self.shift, "replies": self.wanted}
        return [name for name, shift in shifts.items() if (shift > 0).any()]

    @cached_property
    def without_latents(self) -> list[SparseAutoencoder]:
        """The SAEs of which no sparse latent rises with the instruction in some reading."""
        return [
            sae
            for i, sae in enumerate(self.saes)
            if not all(self.statistics(i, reading).ranking() for reading in self.readings)
        ]

    @cached_property
    def _statistics(self) -> dict[tuple[int, Reading], LatentStatistics]:
        return {}

    def statistics(self, sae: int, reading: Reading) -> LatentStatistics:
        """Return the statistics of one of the SAEs, by its index; computed once."""
        key = (sae, reading)
        if key not in self._statistics:
            self._statistics[key] = LatentStatistics.compute(
                self.saes[sae], self.readings[reading], allow_mismatch=self.allow_mismatch
            )
        return self._statistics[key]


# Indices into a grid's axes, one per axis.
Point: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """What a method varies, and how a point of it becomes a candidate.

    Attributes:
        name: the method's.
        make: makes a candidate of the evidence and a value of each axis, by name.
        axes: values by name; numbers ascend.
    """

    name: str
    make: Callable[..., Candidate]
    axes: Mapping[str, Sequence[Any]]

    def draw(self, size: int, seed: int) -> list[Point]:
        """Draw ``size`` points without replacement, or all of a smaller grid.

        Each value of an axis is drawn equally often (a Latin hypercube), as far as points differ.
        """
        lengths = [len(values) for values in self.axes.values()]
        if size >= math.prod(lengths):
            return list(itertools.product(*map(range, lengths)))
        chance = random.Random(f"{self.name} {seed}")
        found: dict[Point, None] = {}
        while len(found) < size:
            columns = [_evenly(length, size, chance) for length in lengths]
            found |= dict.fromkeys(itertools.islice(zip(*columns, strict=True), size - len(found)))
        return list(found)

    def neighbours(self, point: Point) -> list[Point]:
        """Return the points that differ in one axis: of numbers by one step, of others anyhow."""
        found = []
        for axis, values in enumerate(self.axes.values()):
            at = point[axis]
            ordered = all(isinstance(value, int | float) for value in values)
            others = (at - 1, at + 1) if ordered else range(len(values))
            for i in others:
                if 0 <= i < len(values) and i != at:
                    found.append((*point[:axis], i, *point[axis + 1 :]))
        return found

    def around(
        self, best: Sequence[Point], known: Sequence[Point], size: int, seed: int
    ) -> list[Point]:
        """Return up to ``size`` unknown neighbours of points, from each in turn."""
        chance = random.Random(f"{self.name} {seed} {len(known)}")
        seen, found = set(known), list[Point]()
        rest = [self.neighbours(point) for point in best]
        for neighbours in rest:
            chance.shuffle(neighbours)
        for neighbour in itertools.chain(*itertools.zip_longest(*rest)):
            if len(found) < size and neighbour is not None and neighbour not in seen:
                seen.add(neighbour)
                found.append(neighbour)
        return found

    def candidate(self, evidence: Evidence, point: Point) -> Candidate:
        """Make the candidate at a point."""
        values = zip(self.axes.values(), point, strict=True)
        named = dict(zip(self.axes, (axis[i] for axis, i in values), strict=True))
        return self.make(evidence, **named)


def space(
    evidence: Evidence, windows: Sequence[str] = tuple(WINDOWS), *, controls: bool = False
) -> list[Grid]:
    """Return the grid of every method.

    Args:
        evidence: what is known of the instruction.
        windows: names of the windows, from :data:`WINDOWS`.
        controls: add ``random``, random latents with the same search as the others.

    Raises:
        ValueError: there is no such window.

    Examples:
        >>> [grid.name for grid in space(evidence)]
        ['diff_in_means', 'project', 'logit_bias', 'saif', 'share', 'live']
    """
    check_windows(windows)
    dense = {"layer": tuple(evidence.layers), "reading": tuple(evidence.readings)}
    grids = [
        Grid(
            "diff_in_means",
            _diff_in_means,
            {**dense, "strength": _STRENGTHS, "window": windows},
        ),
        Grid("project", _project, {**dense, "multiple": _MULTIPLES, "window": windows}),
    ]
    if evidence.sources:
        biases = {"source": evidence.sources, "tokens": _BIAS_TOKENS, "largest_bias": _BIASES}
        grids.append(Grid("logit_bias", _logit_bias, biases))
    usable = [i for i, sae in enumerate(evidence.saes) if sae not in evidence.without_latents]
    if usable:
        latents = {
            "sae": usable,
            "reading": tuple(evidence.readings),
            "ranker": tuple(evidence.rankers),
            "k": _KS,
            "strength": _STRENGTHS,
            "window": windows,
        }
        grids += [
            Grid("saif", _of_latents, latents),
            Grid("share", _of_latents, {**latents, "over": ("difference",)}),
            Grid("live", _of_latents, {**latents, "over": ("actives",), "edit": _LIVE}),
        ]
        if controls:
            draws = {**latents, "ranker": ("consistency",), "draw": range(20)}
            grids.append(Grid("random", _random, draws))
    return grids


def _diff_in_means(
    evidence: Evidence, layer: int, reading: Reading, strength: float, window: str
) -> Candidate:
    found = diff_in_means(evidence.readings[reading], layer).scaled(strength)
    return _steered(found, window, layer=layer, reading=reading, strength=strength)


def _project(
    evidence: Evidence, layer: int, reading: Reading, multiple: float, window: str
) -> Candidate:
    found = projection(evidence.readings[reading], layer, multiple)
    return _steered(found, window, layer=layer, reading=reading, multiple=multiple)


def _of_latents(
    evidence: Evidence,
    sae: int,
    reading: Reading,
    ranker: str,
    k: int,
    strength: float,
    window: str,
    over: Over = "positives",
    edit: str = "add",
) -> Candidate:
    found = saif_set(
        evidence.statistics(sae, reading), k, edit=edit, over=over, ranker=evidence.rankers[ranker]
    ).scaled(strength)
    source = evidence.saes[sae]
    return _steered(
        found,
        window,
        layer=source.layer,
        sae=source.name,
        reading=reading,
        ranker=ranker,
        k=k,
        edit=edit,
        strength=strength,
    )


def _random(
    evidence: Evidence,
    sae: int,
    reading: Reading,
    ranker: str,
    k: int,
    strength: float,
    window: str,
    draw: int,
) -> Candidate:
    statistics = evidence.statistics(sae, reading)
    like = saif_set(statistics, k, ranker=evidence.rankers[ranker])
    (drawn,) = random_latents(statistics, like, 1, [strength], seed=draw).candidates
    assert drawn.latent_set is not None
    return _steered(
        drawn.latent_set,
        window,
        layer=evidence.saes[sae].layer,
        reading=reading,
        k=k,
        strength=strength,
        draw=draw,
    )


def _logit_bias(evidence: Evidence, source: str, tokens: int, largest_bias: float) -> Candidate:
    direction = evidence.shift if source == "logits" else evidence.wanted
    bias = largest(direction, min(tokens, len(direction)), raised=True)
    peak = max(map(abs, bias.values()))
    return Candidate(
        logit_bias={token: value * largest_bias / peak for token, value in bias.items()},
        parameters={"source": source, "tokens": tokens, "largest_bias": largest_bias},
    )


def _steered(latent_set: LatentSet, window: str, **parameters: int | float | str) -> Candidate:
    return Candidate(
        latent_set=replace(latent_set, defaults=WINDOWS[window]),
        parameters={**parameters, "window": window},
    )


def _evenly(length: int, size: int, chance: random.Random) -> list[int]:
    """Return ``size`` indices below ``length``, each as often as the others, in random order."""
    rounds = (chance.sample(range(length), length) for _ in range(-(-size // length)))
    return list(itertools.islice(itertools.chain(*rounds), size))
