from __future__ import annotations

import itertools

import pytest
import torch
from random_model import D_SAE, tiny_model, tiny_sae, tiny_tokenizer

from saif_fast.identify import LatentStatistics, build_pairs, collect
from saif_fast.identify.rankers import AUROC, CONSISTENCY, MEAN_DIFFERENCE, auroc, output_score
from saif_fast.logit_bias import Unembedding

LAYER = 2


def statistics(**changes: object) -> LatentStatistics:
    pairs = build_pairs([f"w{i} w{i + 1}" for i in range(8)], ["w30 w31", "w32"])
    activations = collect(tiny_model(), tiny_tokenizer(), pairs, [LAYER])
    return LatentStatistics.compute(tiny_sae(**changes), activations, max_density=1.0)


def test_auroc_counts_pairs_and_halves_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randint(0, 4, (7, 5), generator=generator).float()
    negative = torch.randint(0, 4, (9, 5), generator=generator).float()
    for column, got in enumerate(auroc(positive, negative).tolist()):
        compared = itertools.product(positive[:, column].tolist(), negative[:, column].tolist())
        wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in compared]
        assert got == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize(
    "changes", [{}, {"k": 8, "architecture": "topk", "threshold": torch.zeros(D_SAE)}]
)
def test_auroc_reads_the_activations(changes: dict[str, object]) -> None:
    found = statistics(**changes)
    positive, negative, _ = found.activations.at(LAYER)
    expected = auroc(found.sae.encode(positive), found.sae.encode(negative))
    every = torch.arange(D_SAE)
    torch.testing.assert_close(AUROC.score(found, every), expected)
    torch.testing.assert_close(AUROC.score(found, every[5:9]), expected[5:9])


def test_the_output_score_is_the_logit_lens_on_the_wanted_tokens() -> None:
    found, unembedding = statistics(), Unembedding(tiny_model())
    wanted = torch.zeros(tiny_model().config.vocab_size)
    wanted[7], wanted[9] = 1.0, -0.5
    scores = output_score(unembedding, wanted).score(found, torch.tensor([3, 11]))
    for latent, score in zip((3, 11), scores.tolist(), strict=True):
        row = found.sae.W_dec[latent]
        logits = unembedding.logits((row / row.norm())[None])[0]
        logits = logits - logits.mean()
        assert score == pytest.approx((logits[7] - 0.5 * logits[9]).item(), rel=1e-4, abs=1e-5)


def test_the_output_score_of_no_latent_is_empty() -> None:
    ranker = output_score(Unembedding(tiny_model()), torch.ones(46))
    assert ranker.score(statistics(), torch.tensor([], dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("ranker", [CONSISTENCY, MEAN_DIFFERENCE, AUROC], ids=lambda r: r.name)
def test_a_ranking_falls_in_its_score(ranker: object) -> None:
    found = statistics()
    order = found.ranking(ranker)  # type: ignore[arg-type]
    scores = ranker.score(found, torch.tensor(order))  # type: ignore[attr-defined]
    assert len(order) > 5 and (scores.diff() <= 0).all()
    assert set(order) == set(found.ranking())


def test_the_ranker_is_recorded() -> None:
    latent_set = statistics().latent_set(3, over="difference", ranker=AUROC)
    assert latent_set.provenance.statistic == "AUROC; mu and sigma over difference"
    for latent in latent_set.sites[0].site.latents:
        assert latent.edit.value == latent.mean_difference
