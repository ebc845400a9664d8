"""Candidates that need an SAE or a set: grids of SAIF and its live edits, and their controls."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from saif_fast.edits import Edit, EditKind
from saif_fast.evaluate.methods import Candidate, Method, log_grid, logit_biases
from saif_fast.identify import ActivationSet, LatentStatistics
from saif_fast.identify.rankers import CONSISTENCY, Ranker
from saif_fast.identify.statistics import Over
from saif_fast.latent_set import LatentSet
from saif_fast.logit_bias import largest
from saif_fast.records import Latent, Provenance
from saif_fast.version import __version__


def saif_grid(
    name: str,
    statistics: LatentStatistics,
    ks: Sequence[int],
    betas: Sequence[float],
    kinds: Sequence[EditKind] = ("add",),
    scopes: Sequence[str] = ("generated",),
) -> Method:
    """Make a method of SAIF's sets over k, beta, edit and scope.

    The value of every edit is mu + beta * sigma, whatever the edit does with it.

    Args:
        name: the method's name.
        statistics: measurements of the instruction's latents.
        ks: numbers of latents.
        betas: the betas.
        kinds: kinds of edits.
        scopes: scopes; the number of candidates is the product of the four lengths.

    Examples:
        >>> grid = saif_grid("live", statistics, ks=(5, 15), betas=(0.0, 1.0), kinds=("clamp",))
        >>> len(grid.candidates)
        4
    """
    candidates = []
    for scope in scopes:
        for kind in kinds:
            for k in ks:
                for beta in betas:
                    candidates.append(
                        Candidate(
                            latent_set=saif_set(statistics, k, beta, kind),
                            options={} if scope == "generated" else {"saif_scope": scope},
                            parameters={"k": k, "beta": beta, "edit": kind, "scope": scope},
                        )
                    )
    return Method(name, tuple(candidates))


def saif_set(
    statistics: LatentStatistics,
    k: int,
    beta: float = 0.0,
    edit: str = "add",
    *,
    over: Over = "positives",
    ranker: Ranker = CONSISTENCY,
) -> LatentSet:
    """Make SAIF's set for ``k`` and ``beta``, with edits of another kind but the same values.

    Args:
        statistics: measurements of the instruction's latents.
        k: number of latents; where fewer answer to the instruction, these.
        beta: each edit's value is mu + beta * sigma of its latent.
        edit: kind of the edits, ``add``, ``clamp`` or ``at_least``; with ``@gated`` behind it they
            act only where their latent is active.
        over: which mu and sigma; see :data:`saif_fast.identify.statistics.Over`.
        ranker: which latents come first.

    Examples:
        >>> saif_set(statistics, 5, 0.0, "clamp").save("sets/french-clamped.safetensors")
    """
    found = statistics.latent_set(min(k, statistics.sae.d_sae), beta, over, ranker)
    if edit == "add":
        return found
    kind, _, gate = edit.partition("@")
    (tensors,) = found.sites
    latents = [
        msgspec.structs.replace(
            latent, edit=Edit.parse(f"{kind}:{latent.edit.value!r}{gate and '@gated'}")
        )
        for latent in tensors.site.latents
    ]
    return LatentSet.from_sae(
        statistics.sae, latents, num_layers=found.num_layers, provenance=found.provenance
    )


def projections(
    name: str,
    activations: ActivationSet,
    layer: int,
    multiples: Sequence[float],
    scopes: Sequence[str] = ("generated",),
) -> Method:
    """Make a method that sets the projection on the difference in means (arXiv 2410.12877).

    At multiple 1 the residual's projection becomes the mean projection of the prompts with the
    instruction, at 0 that of the prompts without. Other multiples interpolate and extrapolate.

    Args:
        name: the method's name.
        activations: residuals of the pairs' prompts.
        layer: the layer to steer.
        multiples: the multiples.
        scopes: scopes; the number of candidates is that of multiples times that of scopes.

    Examples:
        >>> method = projections("project", activations, 20, multiples=(0.5, 1.0, 2.0))
        >>> len(method.candidates)
        3
    """
    sets = [projection(activations, layer, multiple) for multiple in multiples]
    return Method(
        name,
        tuple(
            Candidate(
                latent_set=latent_set,
                options={} if scope == "generated" else {"saif_scope": scope},
                parameters={"multiple": multiple, "scope": scope},
            )
            for scope in scopes
            for multiple, latent_set in zip(multiples, sets, strict=True)
        ),
    )


def projection(activations: ActivationSet, layer: int, multiple: float) -> LatentSet:
    """Make the set of one candidate of :func:`projections`."""
    positive, negative = activations.positive[layer].mean(0), activations.negative[layer].mean(0)
    direction = positive - negative
    distance = float(direction.norm())
    return LatentSet.from_direction(
        direction,
        float(negative @ direction) / distance + multiple * distance,
        layer=layer,
        num_layers=activations.num_layers,
        provenance=Provenance(method="project", model=activations.model_name, version=__version__),
    )


def bias_methods(
    name: str, shift: Tensor, largest_biases: tuple[float, float], n: int
) -> list[Method]:
    """Make two methods of logit biases along ``shift``: on 16 tokens, and on all tokens.

    The 16 tokens are those with the largest absolute shift for one half of the candidates, and
    those raised most for the other. Which works better depends on the instruction.

    Args:
        name: the first method's name; the second's has ``_full`` behind it.
        shift: [vocabulary] change of the logits.
        largest_biases: smallest and largest of the largest absolute biases, in logits.
        n: candidates per method.

    Examples:
        >>> short, full = bias_methods("logit_bias", shift, (0.5, 50.0), n=60)
        >>> short.name, full.name
        ('logit_bias', 'logit_bias_full')
    """
    halves = [
        logit_biases(name, largest(shift, 16, raised=raised), log_grid(*largest_biases, n // 2))
        for raised in (False, True)
    ]
    return [
        Method(name, tuple(candidate for half in halves for candidate in half.candidates)),
        logit_biases(f"{name}_full", largest(shift), log_grid(*largest_biases, n)),
    ]


def constant(latent_set: LatentSet) -> Tensor:
    """Return the vector [d_model] that a constant set at one layer adds."""
    (layer,) = latent_set.layers
    return latent_set.edits_at(layer).vector


def random_latents(
    statistics: LatentStatistics,
    like: LatentSet,
    draws: int,
    norms: Sequence[float],
    seed: int,
) -> Method:
    """Make a control of random latents, as many as ``like`` has, added at equal strength.

    They are drawn without replacement from the latents that are ever active on positives or plain
    text, because the others would be a weaker control. Those of ``like`` are left out.

    Args:
        statistics: measurements of the instruction's latents.
        like: the set to be compared with.
        draws: draws at each norm.
        norms: norms of the added vector, as multiples of that of ``like``.
        seed: seed of the draws.

    Examples:
        >>> control = random_latents(statistics, french, draws=20, norms=(0.5, 1.0, 2.0), seed=0)
        >>> len(control.candidates)
        60
    """
    (tensors,) = like.sites
    own = [latent.index for latent in tensors.site.latents]
    alive = (statistics.measured.density > 0) | (statistics.measured.mean > 0)
    alive[own] = False
    pool = alive.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    target = constant(like).norm().item()
    candidates = []
    for draw in range(draws):
        order = torch.randperm(len(pool), generator=generator)[: len(own)]
        drawn = sorted(pool[order].tolist())
        unit = target / statistics.sae.W_dec[drawn].sum(0).norm().item()
        for norm in norms:
            latents = [Latent(index=i, edit=Edit("add", unit * norm)) for i in drawn]
            candidates.append(
                Candidate(
                    latent_set=LatentSet.from_sae(
                        statistics.sae,
                        latents,
                        num_layers=like.num_layers,
                        provenance=Provenance(
                            method="random", k=len(drawn), seed=seed, version=__version__
                        ),
                    ),
                    parameters={"draw": draw, "norm": norm},
                )
            )
    return Method("random", tuple(candidates))


def noise_vectors(like: LatentSet, draws: int, norms: Sequence[float], seed: int) -> Method:
    """Make a control of Gaussian directions at the layer of ``like``.

    Args:
        like: the set to be compared with.
        draws: draws at each norm.
        norms: norms of the directions, as multiples of that of ``like``.
        seed: seed of the draws.

    Examples:
        >>> control = noise_vectors(french, draws=20, norms=(0.5, 1.0, 2.0), seed=0)
        >>> len(control.candidates)
        60
    """
    (layer,) = like.layers
    generator = torch.Generator().manual_seed(seed)
    target = constant(like).norm()
    candidates = []
    for draw in range(draws):
        direction = torch.randn(like.d_model, generator=generator)
        for norm in norms:
            vector = direction / direction.norm() * target * norm
            candidates.append(
                Candidate(
                    latent_set=LatentSet.from_vector(
                        vector,
                        layer=layer,
                        num_layers=like.num_layers,
                        provenance=Provenance(method="noise", seed=seed, version=__version__),
                    ),
                    parameters={"draw": draw, "norm": norm},
                )
            )
    return Method("noise", tuple(candidates))
