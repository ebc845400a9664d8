"""Candidates: a grid's order and options, what a method's sets do, and controls of equal norm."""

from __future__ import annotations

import pytest
import torch

from saif_fast.evaluate.candidates import (
    bias_methods,
    constant,
    noise_vectors,
    projections,
    random_latents,
    saif_grid,
    saif_set,
)
from saif_fast.identify import ActivationSet, LatentStatistics
from saif_fast.latent_set import LatentSet


def test_a_grid_has_every_combination_and_says_which(statistics: LatentStatistics) -> None:
    grid = saif_grid(
        "grid", statistics, (2, 5), (-0.5, 0.5), ("add", "clamp"), ("generated", "all")
    )
    parameters = [tuple(c.parameters.values()) for c in grid.candidates]
    assert len(set(parameters)) == len(parameters) == 2 * 2 * 2 * 2
    for candidate in grid.candidates:
        k, beta, kind, scope = candidate.parameters.values()
        expected = saif_set(statistics, k, beta, kind)
        assert candidate.latent_set is not None
        assert candidate.latent_set.content_hash == expected.content_hash
        assert candidate.options == ({} if scope == "generated" else {"saif_scope": "all"})


def test_a_live_set_has_saifs_latents_and_values_with_another_edit(
    statistics: LatentStatistics,
) -> None:
    constant_set, live = saif_set(statistics, 3, 0.5), saif_set(statistics, 3, 0.5, "clamp")
    before, after = (each.sites[0].site.latents for each in (constant_set, live))
    assert [(x.index, x.edit.value) for x in before] == [(x.index, x.edit.value) for x in after]
    assert {x.edit.kind for x in after} == {"clamp"}
    assert not live.is_last_layer_constant and constant_set.is_last_layer_constant


def test_a_projection_goes_from_the_mean_without_the_instruction_to_that_with_it(
    activations: ActivationSet,
) -> None:
    layer = max(activations.positive)
    method = projections("project", activations, layer, (0.0, 0.5, 1.0), ("generated", "all"))
    assert [c.parameters["multiple"] for c in method.candidates] == [0.0, 0.5, 1.0] * 2
    assert [bool(c.options) for c in method.candidates] == [False] * 3 + [True] * 3
    means = (activations.negative[layer].mean(0), activations.positive[layer].mean(0))
    found = [c.latent_set.edits_at(layer) for c in method.candidates[:3] if c.latent_set]
    targets = [edits.p.item() for edits in found]
    ends = [float(mean @ found[0].W_dec[0]) for mean in means]
    assert [targets[0], targets[2]] == pytest.approx(ends, rel=1e-4, abs=1e-4)
    assert targets[1] == pytest.approx(sum(ends) / 2, rel=1e-4, abs=1e-4)


def test_biases_are_on_the_largest_shifts_the_largest_rises_and_all_tokens() -> None:
    shift = torch.linspace(-3.0, 2.0, 50)  # the largest absolute ones are falls
    short, full = bias_methods("bias", shift, (0.5, 50.0), n=4)
    assert (short.name, full.name) == ("bias", "bias_full")
    assert len(short.candidates) == len(full.candidates) == 4
    assert [c.parameters["largest_bias"] for c in short.candidates] == [0.5, 50.0] * 2
    any_sign, raised = short.candidates[1].logit_bias, short.candidates[3].logit_bias
    assert any_sign is not None and raised is not None
    assert len(any_sign) == len(raised) == 16
    assert min(any_sign.values()) == pytest.approx(-50.0)
    assert min(raised.values()) > 0 and max(raised.values()) == pytest.approx(50.0)
    assert [len(c.logit_bias or ()) for c in full.candidates] == [50] * 4


def test_random_latents_are_not_those_of_the_set_and_differ_between_draws(
    statistics: LatentStatistics,
) -> None:
    like = saif_set(statistics, 5, 0.0)
    own = {latent.index for latent in like.sites[0].site.latents}
    method = random_latents(statistics, like, 20, (1.0,), seed=0)
    drawn = [
        frozenset(latent.index for latent in c.latent_set.sites[0].site.latents)
        for c in method.candidates
    ]
    assert len(set(drawn)) == 20
    assert all(len(one) == 5 and not one & own for one in drawn)
    again = random_latents(statistics, like, 20, (1.0,), seed=0)
    assert [c.latent_set.content_hash for c in again.candidates] == [
        c.latent_set.content_hash for c in method.candidates
    ]


def test_controls_have_multiples_of_the_sets_norm() -> None:
    like = LatentSet.from_vector(torch.arange(64.0), layer=1, num_layers=3)
    method = noise_vectors(like, draws=2, norms=(0.5, 2.0), seed=0)
    sets = [c.latent_set for c in method.candidates if c.latent_set]
    assert {one.layers for one in sets} == {(1,)}
    norms = [constant(one).norm() / constant(like).norm() for one in sets]
    assert norms == pytest.approx([0.5, 2.0, 0.5, 2.0], rel=1e-5)
    first, longer, second, _ = map(constant, sets)
    torch.testing.assert_close(longer, 4 * first)
    assert abs(torch.cosine_similarity(first, second, dim=0)) < 0.9
