from __future__ import annotations

import statistics as python_statistics

import pytest
import torch
from random_model import D_MODEL, D_SAE, N_LAYERS, tiny_model, tiny_sae, tiny_tokenizer
from torch import Tensor

from saif_fast.identify import (
    ActivationSet,
    ContrastPair,
    ContrastPairs,
    LatentStatistics,
    build_pairs,
    collect,
    diff_in_means,
    find_latents,
)
from saif_fast.latent_set import LatentSet
from saif_fast.sae import SparseAutoencoder

LAYER = N_LAYERS - 1
N_PAIRS, N_PLAIN = 300, 500


def made_pairs(n: int) -> ContrastPairs:
    return ContrastPairs(tuple(ContrastPair(f"p{i}", f"n{i}", str(i % 2)) for i in range(n)))


def activations(seed: int = 0, shift: float = 1.0, model_name: str = "tiny") -> ActivationSet:
    generator = torch.Generator().manual_seed(seed)

    def normal(n: int) -> Tensor:
        return torch.randn(n, D_MODEL, generator=generator)

    direction = normal(1)
    negative = normal(N_PAIRS)
    return ActivationSet(
        positive={LAYER: normal(N_PAIRS) + shift * direction},
        negative={LAYER: negative},
        plain={LAYER: normal(N_PLAIN)},
        pairs=made_pairs(N_PAIRS),
        model_name=model_name,
        num_layers=N_LAYERS,
        chat=False,
    )


def identity_sae() -> SparseAutoencoder:
    """Latent i is coordinate i where it is positive, so that activations are chosen by hand."""
    return tiny_sae(
        W_enc=torch.eye(D_MODEL),
        b_enc=torch.zeros(D_MODEL),
        threshold=torch.zeros(D_MODEL),
        W_dec=torch.eye(D_MODEL),
        b_dec=torch.zeros(D_MODEL),
    )


def by_hand(
    positive: list[list[float]], negative: list[list[float]], plain: list[list[float]]
) -> ActivationSet:
    """Activations of the first latents of :func:`identity_sae`; the rest are 0."""

    def filled(rows: list[list[float]]) -> Tensor:
        table = torch.zeros(len(rows), D_MODEL)
        for i, row in enumerate(rows):
            table[i, : len(row)] = torch.tensor(row)
        return table

    return ActivationSet(
        positive={LAYER: filled(positive)},
        negative={LAYER: filled(negative)},
        plain={LAYER: filled(plain)},
        pairs=made_pairs(len(positive)),
        model_name="tiny",
        num_layers=N_LAYERS,
        chat=False,
    )


SAES = {
    "jumprelu": {},
    "topk": {"k": 8, "architecture": "topk", "threshold": torch.zeros(D_SAE)},
    "normalizing": {"normalization": "layer_norm"},
    "columns-of-W_enc": {"W_enc": tiny_sae().W_enc.T.contiguous().T},
}


@pytest.mark.parametrize("changes", SAES.values(), ids=SAES)
def test_every_statistic_equals_python(changes: dict[str, object]) -> None:
    sae, data = tiny_sae(**changes), activations()
    measured = LatentStatistics.compute(sae, data).measured
    with_ = sae.encode(data.positive[LAYER]).T.tolist()
    without = sae.encode(data.negative[LAYER]).T.tolist()
    plain = sae.encode(data.plain[LAYER]).T.tolist()
    for i in range(D_SAE):
        change = [a - b for a, b in zip(with_[i], without[i], strict=True)]
        actives = [a for a in with_[i] if a > 0]
        expected = (
            sum(c > 0 for c in change) / N_PAIRS,
            python_statistics.mean(change),
            python_statistics.mean(with_[i]),
            python_statistics.pstdev(with_[i]),
            python_statistics.mean(actives) if actives else 0.0,
            python_statistics.pstdev(actives) if actives else 0.0,
            sum(a > 0 for a in plain[i]) / N_PLAIN,
        )
        got = [column[i].item() for column in measured]
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6), f"latent {i}"


def test_ties_go_to_the_mean_difference_then_to_the_index() -> None:
    data = by_hand(
        positive=[[1, 2, 2, 9, 1, 0], [1, 2, 2, 0, 1, 0]],
        negative=[[0, 0, 0, 0, 0, 5], [0, 0, 0, 0, 0, 5]],
        plain=[[0.0]] * 10,
    )
    ranking = LatentStatistics.compute(identity_sae(), data).ranking()
    # 1 and 2 tie in everything, 0 and 4 rise less, 3 rises most but not in every pair, 5 falls.
    assert ranking == [1, 2, 0, 4, 3]


def test_dense_latents_are_left_out() -> None:
    data = by_hand(
        positive=[[5, 1], [5, 1]],
        negative=[[0, 0], [0, 0]],
        plain=[[1, 0]] * 2 + [[0, 1]] + [[0]] * 7,
    )
    sae = identity_sae()
    assert LatentStatistics.compute(sae, data).ranking() == [1]
    assert LatentStatistics.compute(sae, data, max_density=0.2).ranking() == [0, 1]


@pytest.mark.parametrize("beta", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("over, mu, sigma", [("positives", 2.0, 2.0), ("actives", 4.0, 0.0)])
def test_strength_is_mu_plus_beta_sigma(over: str, mu: float, sigma: float, beta: float) -> None:
    data = by_hand([[4], [0]], [[0], [0]], [[0.0]])
    (latent,) = (
        LatentStatistics.compute(identity_sae(), data)
        .latent_set(1, beta, over)  # type: ignore[arg-type]
        .sites[0]
        .site.latents
    )
    assert latent.edit.kind == "add" and latent.edit.value == pytest.approx(mu + beta * sigma)
    assert over in found_statistic(data, over)


def found_statistic(data: ActivationSet, over: str) -> str:
    latent_set = LatentStatistics.compute(identity_sae(), data).latent_set(1, 0.0, over)  # type: ignore[arg-type]
    return str(latent_set.provenance.statistic)


def test_the_set_steers_along_the_decoder_rows_of_the_first_k() -> None:
    sae = tiny_sae()
    found = LatentStatistics.compute(sae, activations(), max_density=1.0)
    latent_set = found.latent_set(k=5, beta=0.5)
    expected = torch.zeros(D_MODEL)
    for i in found.ranking()[:5]:
        expected += (found.measured.mean[i] + 0.5 * found.measured.std[i]) * sae.W_dec[i]
    torch.testing.assert_close(latent_set.edits_at(LAYER).vector, expected)
    assert latent_set.n_live == {LAYER: 0}


def test_difference_in_means() -> None:
    data = activations()
    latent_set = diff_in_means(data, LAYER)
    expected = (data.positive[LAYER] - data.negative[LAYER]).mean(0)
    torch.testing.assert_close(latent_set.edits_at(LAYER).vector, expected, rtol=1e-4, atol=1e-5)
    assert latent_set.provenance.method == "diff_in_means"
    with pytest.raises(ValueError, match=f"expected one of .{LAYER}., got 0"):
        diff_in_means(data, 0)


def test_a_topk_sae_gets_a_threshold_and_says_how_often_it_is_wrong() -> None:
    sae = tiny_sae(k=8, architecture="topk", threshold=torch.zeros(D_SAE))
    found = LatentStatistics.compute(sae, activations())
    assert found.sae.can_edit_live and not sae.can_edit_live
    assert 0 <= float(found.provenance.notes["threshold_disagreement"]) < 1
    assert (found.latent_set(3).sites[0].threshold > 0).all()


def computed() -> LatentStatistics:
    return LatentStatistics.compute(tiny_sae(), activations())


REFUSED = {
    "k too large": (lambda: computed().latent_set(D_SAE + 1), "1 to 48, the SAE's latents, got 49"),
    "k zero": (lambda: computed().latent_set(0), "1 to 48"),
    "no latent changes": (
        lambda: LatentStatistics.compute(
            identity_sae(), by_hand([[1], [2]], [[1], [2]], [[0.0]])
        ).latent_set(1),
        "changes sparse latents, got none",
    ),
    "another width": (
        lambda: LatentStatistics.compute(
            tiny_sae(
                W_enc=torch.ones(8, 4),
                W_dec=torch.ones(4, 8),
                b_dec=torch.zeros(8),
                b_enc=torch.zeros(4),
                threshold=torch.zeros(4),
            ),
            activations(),
        ),
        f"expected the model's {D_MODEL}, got 8",
    ),
    "another layer": (lambda: LatentStatistics.compute(tiny_sae(0), activations()), "got 0"),
    "another model": (
        lambda: LatentStatistics.compute(tiny_sae(model_name="gemma-2-2b"), activations()),
        "got one of 'gemma-2-2b'; allow_mismatch",
    ),
}


@pytest.mark.parametrize("act, message", REFUSED.values(), ids=REFUSED)
def test_refused(act: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()  # type: ignore[operator]


def test_a_mismatch_that_is_allowed_is_announced_with_the_fit() -> None:
    sae = tiny_sae(model_name="gemma-2-2b")
    data = activations(model_name="google/gemma-2-2b-it")
    with pytest.warns(UserWarning, match=r"explained variance -?[\d.]+, L0 [\d.]+"):
        LatentStatistics.compute(sae, data, allow_mismatch=True)


@pytest.mark.parametrize(
    "sae_name, model_name",
    [("gemma-2-2b", "google/gemma-2-2b"), ("gpt2-small", "openai-community/gpt2"), (None, "any")],
)
def test_names_of_one_model(sae_name: str | None, model_name: str) -> None:
    LatentStatistics.compute(tiny_sae(model_name=sae_name), activations(model_name=model_name))


def found_in_a_model(seed: int = 0, **options: object) -> LatentSet:
    pairs = build_pairs(
        [f"w{i} w{i + 1}" for i in range(12)],
        ["w30 w31", "w32"],
        neutral=["w33", "w34"],
        others=["w35", "w36 w37"],
        max_pairs=20,
        seed=seed,
    )
    return find_latents(tiny_model(), tiny_tokenizer(), tiny_sae(), pairs, **options)  # type: ignore[arg-type]


def test_identify_is_deterministic_and_says_where_the_set_comes_from() -> None:
    one, two = found_in_a_model(k=3, beta=0.5), found_in_a_model(k=3, beta=0.5)
    assert one.content_hash == two.content_hash and one.provenance == two.provenance
    assert found_in_a_model(1, k=3, beta=0.5).provenance.data_hash != one.provenance.data_hash
    origin = one.provenance
    assert (origin.method, origin.k, origin.beta, origin.n_pairs) == ("saif", 3, 0.5, 20)
    assert (origin.position, origin.seed, origin.wordings) == ("post", 0, ["w30 w31", "w32"])
    for name in ("model", "version", "data_hash", "statistic", "unit"):
        assert getattr(origin, name), name
    assert {"fit", "max_density", "chat"} <= set(origin.notes)
    assert origin.notes["negatives"] == "plain, neutral, others"
    site = one.sites[0].site
    assert site.sae is not None and site.sae.content_hash == tiny_sae().content_hash
    for latent in site.latents:
        assert None not in (latent.consistency, latent.mean, latent.std_active, latent.density)


def test_one_collection_serves_saes_of_several_layers() -> None:
    pairs = build_pairs(["w1 w2", "w3"], ["w30", "w31"], max_pairs=None)
    both = collect(tiny_model(), tiny_tokenizer(), pairs, [0, LAYER])
    for layer in (0, LAYER):
        sae = tiny_sae(layer)
        alone = find_latents(tiny_model(), tiny_tokenizer(), sae, pairs, k=2)
        assert LatentStatistics.compute(sae, both).latent_set(2).content_hash == alone.content_hash
