"""Rankers: measures of how well each latent answers to an instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saif_fast.logit_bias import Unembedding, centred

if TYPE_CHECKING:
    from saif_fast.identify.statistics import LatentStatistics

_LATENTS_PER_CHUNK = 256  # bounds the [latents, vocabulary] logits in memory


class Ranker(NamedTuple):
    """A name, and a function that scores latents: the better the larger.

    The function takes the statistics and the indices of latents [n], and returns [n] fp32.
    """

    name: str
    score: Callable[[LatentStatistics, Tensor], Tensor]


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """Return, for each column, the probability that a positive is above a negative.

    Ties count one half, so that a column that is always 0 gets 0.5 (Mann-Whitney U over n * m).

    Args:
        positive: [n, columns] values with the instruction.
        negative: [m, columns] values without it.
    """
    ordered = negative.T.sort(dim=1).values.contiguous()
    sought = positive.T.contiguous()
    left = torch.searchsorted(ordered, sought, side="left")
    right = torch.searchsorted(ordered, sought, side="right")
    below = (left + right).double().mean(1) / 2
    return (below / len(negative)).float()


def _auroc(statistics: LatentStatistics, latents: Tensor) -> Tensor:
    sae = statistics.sae
    positive, negative, _ = statistics.activations.at(sae.layer)
    # A TopK SAE compares all latents of a token, so all are encoded.
    with_, without = (
        sae.encode(x.to(sae.W_enc.device)).cpu()[:, latents] for x in (positive, negative)
    )
    return auroc(with_, without)


CONSISTENCY = Ranker("consistency", lambda found, latents: found.measured.consistency[latents])
MEAN_DIFFERENCE = Ranker(
    "mean difference", lambda found, latents: found.measured.mean_difference[latents]
)
AUROC = Ranker("AUROC", _auroc)


def output_score(unembedding: Unembedding, wanted: Tensor) -> Ranker:
    """Make a ranker by what a latent's decoder row does to the logits.

    The score is the logit lens of the unit decoder row, times ``wanted``: a latent that raises the
    tokens of the instruction's replies scores high (compare arXiv 2505.20063).

    Args:
        unembedding: the model's.
        wanted: [vocabulary] how much more often each token occurs in replies with the instruction
            than in replies without it.
    """
    weights = centred(wanted)

    def score(statistics: LatentStatistics, latents: Tensor) -> Tensor:
        rows = statistics.sae.W_dec.cpu()[latents]
        unit = rows / rows.norm(dim=1, keepdim=True)
        parts = [unembedding.logits(part) @ weights for part in unit.split(_LATENTS_PER_CHUNK)]
        return torch.cat([torch.empty(0), *parts])

    return Ranker("output score", score)
