"""How strongly each latent answers to an instruction: counted once, for latent sets of any size."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from saif_fast.edits import Edit
from saif_fast.identify.activations import ActivationSet
from saif_fast.identify.rankers import CONSISTENCY, Ranker
from saif_fast.latent_set import LatentSet
from saif_fast.model_info import check_sae
from saif_fast.records import Latent, Provenance
from saif_fast.sae import SparseAutoencoder
from saif_fast.version import __version__
from saif_kernels import encode_moments

# A latent active on more of the plain text's tokens than this is no sign of an instruction.
MAX_DENSITY = 0.1
DEFAULT_K = 15  # latents in a set, unless asked for more or fewer

# What a latent is added at: mu + beta * sigma over all positives, or over those on which it is
# active, or its mean difference (no beta), so that the set is the SAE's share of the difference.
Over = Literal["positives", "actives", "difference"]
_COLUMNS = {
    "positives": ("mean", "std"),
    "actives": ("mean_active", "std_active"),
    "difference": ("mean_difference", None),
}


class Measured(NamedTuple):
    """Statistics of each latent, [d_sae] fp32 in canonical units; sigmas divide by n."""

    consistency: Tensor  # C_i, share of pairs with a(with) - a(without) > 0
    mean_difference: Tensor  # mean over pairs of a(with) - a(without)
    mean: Tensor  # mu over all positives
    std: Tensor  # sigma over all positives
    mean_active: Tensor  # the same over the positives on which it is active; 0 where there are none
    std_active: Tensor
    density: Tensor  # share of plain-text tokens on which it is active


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Statistics of what one instruction does to the latents of one SAE."""

    measured: Measured
    sae: SparseAutoencoder
    activations: ActivationSet
    provenance: Provenance
    max_density: float
    _rankings: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def compute(
        cls,
        sae: SparseAutoencoder,
        activations: ActivationSet,
        *,
        max_density: float = MAX_DENSITY,
        allow_mismatch: bool = False,
    ) -> LatentStatistics:
        """Encode the activations and count; calibrate a TopK SAE's threshold on them.

        Args:
            sae: an SAE of a layer at which the activations were collected.
            activations: residuals of an instruction's pairs and of plain text, from ``collect``.
            max_density: largest share of plain-text tokens on which a ranked latent is active.
            allow_mismatch: take an SAE of another model of this shape (a base model's, say), with a
                warning that says how well it fits.

        Raises:
            ValueError: the SAE does not fit the model, or its layer was not collected.

        Examples:
            >>> activations = collect(model, tokenizer, pairs, [sae.layer])
            >>> statistics = LatentStatistics.compute(sae, activations)
            >>> sets = [statistics.latent_set(k) for k in (5, 15, 30)]
        """
        doubt = check_sae(sae, activations.model, allow_mismatch=allow_mismatch)
        positive, negative, plain = (x.to(sae.W_enc.device) for x in activations.at(sae.layer))
        prompts = torch.cat([positive, negative])
        variance, l0 = sae.explained_variance(prompts), sae.l0(prompts)
        fit = f"explained variance {variance:.3f}, L0 {l0:.1f} on the pairs"
        if doubt is not None:
            warnings.warn(f"{doubt}; {fit}", stacklevel=2)
        plain_text = f"{activations.plain_name}, {len(plain)} tokens"
        notes = {
            "fit": fit,
            "max_density": f"{max_density:g}",
            "plain_text": plain_text,
            "reading": activations.reading,
        }
        if sae.k is not None and sae.calibration is None:
            sae = sae.with_calibrated_threshold(torch.cat([prompts, plain]))
        if sae.calibration is not None:
            notes["threshold_disagreement"] = f"{sae.calibration.disagreement:.4f}"
        measured = _measure(sae, positive, negative, plain)
        origin = _provenance("saif", activations, notes)
        return cls(measured, sae, activations, origin, max_density)

    def ranking(self, ranker: Ranker = CONSISTENCY) -> list[int]:
        """Return the latents that rise and are not dense, best first.

        Of equal scores, the larger mean difference is better, then the smaller index.
        """
        if ranker.name not in self._rankings:
            measured = self.measured
            found = (measured.mean_difference > 0) & (measured.density <= self.max_density)
            latents = found.nonzero().squeeze(1)
            scores = ranker.score(self, latents).tolist()
            differences = measured.mean_difference[latents].tolist()
            ordered = sorted(
                zip(latents.tolist(), scores, differences, strict=True),
                key=lambda each: (-each[1], -each[2], each[0]),
            )
            self._rankings[ranker.name] = [latent for latent, _, _ in ordered]
        return self._rankings[ranker.name]

    def latent_set(
        self,
        k: int = DEFAULT_K,
        beta: float = 0.0,
        over: Over = "positives",
        ranker: Ranker = CONSISTENCY,
    ) -> LatentSet:
        """Make a set of the first k of a ranking, each latent added at mu + beta * sigma.

        The set has fewer latents where fewer rise. No forward of the model is needed.

        Args:
            k: number of latents.
            beta: number of standard deviations above the mean.
            over: which mean and standard deviation; see :data:`Over`.
            ranker: which latents come first.

        Raises:
            ValueError: the SAE allows no edits, ``k`` or ``beta`` is out of range, or no latent
                rises.

        Examples:
            >>> share = statistics.latent_set(60, over="difference", ranker=MEAN_DIFFERENCE)
        """
        check_choice(self.sae, k, beta)
        ranking = self.ranking(ranker)
        if not ranking:
            raise ValueError("pairs: expected an instruction that changes sparse latents, got none")
        columns = self.measured._asdict()
        latents = []
        mu, sigma = _COLUMNS[over]
        for i in ranking[:k]:
            row = {name: column[i].item() for name, column in columns.items()}
            value = row[mu] + (beta * row[sigma] if sigma else 0.0)
            latents.append(Latent(index=i, edit=Edit("add", value), **row))
        origin = msgspec.structs.replace(
            self.provenance,
            statistic=f"{ranker.name}; mu and sigma over {over}",
            k=k,
            beta=beta,
        )
        return LatentSet.from_sae(
            self.sae, latents, num_layers=self.activations.num_layers, provenance=origin
        )


def check_choice(sae: SparseAutoencoder, k: int, beta: float) -> None:
    """Raise ValueError unless a set of ``k`` latents, at mu + beta * sigma, can be made of the SAE.

    No activations are needed, so this can be checked before they are collected.
    """
    sae.require_edits()
    if not 1 <= k <= sae.d_sae:
        raise ValueError(f"k: expected 1 to {sae.d_sae}, the SAE's latents, got {k}")
    if not math.isfinite(beta):
        raise ValueError(f"beta: expected a finite number, got {beta}")


def diff_in_means(activations: ActivationSet, layer: int) -> LatentSet:
    """Make a set of the difference in means, as a dense vector.

    It is the mean residual with the instruction minus that without, over the rows of the reading.
    """
    positive, negative, _ = activations.at(layer)
    return LatentSet.from_vector(
        positive.mean(0) - negative.mean(0),
        layer=layer,
        num_layers=activations.num_layers,
        provenance=_provenance("diff_in_means", activations, {"reading": activations.reading}),
    )


def _measure(sae: SparseAutoencoder, positive: Tensor, negative: Tensor, plain: Tensor) -> Measured:
    if not sae.W_enc.is_contiguous():  # the op reads its rows
        sae = dataclasses.replace(sae, W_enc=sae.W_enc.contiguous())
    pairs = encode_moments(sae.normalized(positive), sae, sae.normalized(negative))
    assert pairs.n_greater is not None and pairs.sum_difference is not None
    dense = encode_moments(sae.normalized(plain), sae).n_active
    n_pairs, n_active = len(positive), pairs.n_active.clamp(min=1).double()
    columns = [pairs.n_greater.double() / n_pairs, pairs.sum_difference / n_pairs]
    # Inactive positives are 0 in both sums, so that over the actives only the divisor differs.
    for count in (torch.full_like(n_active, n_pairs), n_active):
        mean = pairs.sum / count
        columns += [mean, (pairs.sum_squares / count - mean.square()).clamp(min=0).sqrt()]
    columns.append(dense.double() / max(len(plain), 1))
    return Measured(*(column.float().cpu() for column in columns))


def _provenance(method: str, activations: ActivationSet, notes: dict[str, str]) -> Provenance:
    pairs = activations.pairs
    return Provenance(
        method=method,
        model=activations.model_name,
        wordings=list(pairs.wordings),
        position=pairs.position,
        n_pairs=len(pairs.pairs),
        data_hash=pairs.data_hash,
        seed=pairs.seed,
        version=__version__,
        notes={"chat": str(activations.chat).lower(), "negatives": pairs.negatives, **notes},
    )
