"""Rows of the table that need an SAE or a set: grids of SAIF, its live edits, its controls."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from saif_fast.edits import Edit, EditKind
from saif_fast.evaluate.methods import Candidate, Method, log_grid, logit_biases
from saif_fast.identify import ActivationSet, LatentStatistics
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
    """k x beta x edit x scope; the edits' value is mu + beta * sigma, whatever they do with it."""
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
    statistics: LatentStatistics, k: int, beta: float, kind: EditKind = "add"
) -> LatentSet:
    """SAIF's set for k and beta, with another edit of the same value where ``kind`` is not "add".

    k beyond the latents that answer to the instruction takes those there are.
    """
    found = statistics.latent_set(min(k, statistics.sae.d_sae), beta)
    if kind == "add":
        return found
    (tensors,) = found.sites
    latents = [
        msgspec.structs.replace(latent, edit=Edit(kind, latent.edit.value))
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
    """Set the residual's projection on the difference in means, a live edit (arXiv 2410.12877).

    At multiple 1 it becomes the mean projection of the prompts with the instruction, at 0 that of
    those without; in between and beyond it is interpolated.
    """
    positive, negative = activations.positive[layer].mean(0), activations.negative[layer].mean(0)
    direction = positive - negative
    unit = direction / direction.norm()
    without, distance = float(negative @ unit), float(direction.norm())
    sets = [
        LatentSet.from_direction(
            direction,
            without + multiple * distance,
            layer=layer,
            num_layers=activations.num_layers,
            provenance=Provenance(
                method="project", model=activations.model_name, version=__version__
            ),
        )
        for multiple in multiples
    ]
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


def bias_rows(
    name: str, shift: Tensor, largest_biases: tuple[float, float], n: int
) -> list[Method]:
    """Logit biases along ``shift`` [vocabulary], ``n`` candidates each: 16 tokens, and all tokens.

    The 16 are those with the largest absolute shift for one half of the candidates, and those
    raised most for the other: which works better depends on the instruction.
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
    """The vector [d_model] that a constant set at one layer adds."""
    (layer,) = latent_set.layers
    return latent_set.edits_at(layer).vector


def random_latents(
    statistics: LatentStatistics,
    like: LatentSet,
    draws: int,
    norms: Sequence[float],
    seed: int,
) -> Method:
    """Random latents, as many as ``like`` has, added at equal strength.

    Drawn without replacement from the latents that are ever active on positives or plain text (the
    others would be a weaker control), without those of ``like``. The added vector's norm is that of
    ``like`` times each of ``norms``.
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
    """Gaussian directions at ``like``'s layer, with its vector's norm times each of ``norms``."""
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
