"""Identification: from contrast pairs to the latents that make a model follow an instruction."""

from saif_fast.identify.activations import (
    ActivationSet,
    Reading,
    ResidualSource,
    collect,
    collect_readings,
    plain_texts,
)
from saif_fast.identify.find import find_latents
from saif_fast.identify.pairs import ContrastPair, ContrastPairs, build_pairs, load_pairs, pairs_of
from saif_fast.identify.statistics import LatentStatistics, diff_in_means

__all__ = [
    "ActivationSet",
    "ContrastPair",
    "ContrastPairs",
    "LatentStatistics",
    "Reading",
    "ResidualSource",
    "build_pairs",
    "collect",
    "collect_readings",
    "diff_in_means",
    "find_latents",
    "load_pairs",
    "pairs_of",
    "plain_texts",
]
