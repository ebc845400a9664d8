from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from random_model import tiny_model, tiny_sae, tiny_tokenizer

from saif_fast.evaluate.methods import Method
from saif_fast.identify import build_pairs, diff_in_means
from saif_fast.identify.activations import collect_readings
from saif_fast.logit_bias import Unembedding
from saif_fast.search.space import WINDOWS, Evidence, Grid, space

LAYERS = [0, 1, 2]


def evidence(saes: bool = True) -> Evidence:
    pairs = build_pairs([f"w{i} w{i + 1}" for i in range(12)], ["w30 w31", "w32"])
    prompts = {side for pair in pairs.pairs for side in (pair.positive, pair.negative)}
    replies = {prompt: [4 + len(prompt) % 7, 12, 13, 14] for prompt in prompts}
    model = tiny_model()
    readings = collect_readings(model, tiny_tokenizer(), pairs, replies, LAYERS)
    wanted = torch.zeros(model.config.vocab_size)
    wanted[12] = 1.0
    return Evidence(
        readings=readings,
        layers=LAYERS,
        saes=[tiny_sae(layer) for layer in (1, 2)] if saes else [],
        unembedding=Unembedding(model),
        wanted=wanted,
        shift=torch.arange(model.config.vocab_size).float(),
    )


def drawn(
    found: Evidence, size: int, seed: int = 0, windows: tuple[str, ...] = ("generated",)
) -> list[Method]:
    return [
        Method(grid.name, tuple(grid.candidate(found, point) for point in grid.draw(size, seed)))
        for grid in space(found, windows)
    ]


def test_every_method_gets_an_equal_search_drawn_from_its_whole_grid() -> None:
    methods = drawn(evidence(), 60, windows=tuple(WINDOWS))
    assert {method.name: len(method.candidates) for method in methods} == {
        "diff_in_means": 60,
        "project": 60,
        "logit_bias": 60,
        "saif": 60,
        "share": 60,
        "live": 60,
    }
    for method in methods:
        values = [candidate.parameters for candidate in method.candidates]
        assert len({tuple(each.items()) for each in values}) == 60
        if method.name != "logit_bias":
            assert {each["window"] for each in values} == set(WINDOWS)
            assert {each["reading"] for each in values} == {"last", "reply"}
            layers = {1, 2} if method.name in ("saif", "share", "live") else set(LAYERS)
            assert {each["layer"] for each in values} == layers


def test_a_search_is_the_same_each_time_and_another_with_another_seed() -> None:
    def hashes(seed: int) -> list[str | None]:
        return [
            None if c.latent_set is None else c.latent_set.content_hash
            for method in drawn(evidence(), 4, seed)
            for c in method.candidates
        ]

    assert hashes(0) == hashes(0) != hashes(1)


def test_a_window_is_the_sets_own_so_that_a_plain_request_has_it() -> None:
    for method in drawn(evidence(), 12, windows=tuple(WINDOWS)):
        assert all(candidate.options == {} for candidate in method.candidates)
        if method.name != "logit_bias":
            own = [candidate.latent_set.defaults for candidate in method.candidates]  # type: ignore[union-attr]
            assert all(own.count(window) == 2 for window in WINDOWS.values())
    with pytest.raises(ValueError, match=r"window: expected one of generated, .* got 'some'"):
        space(evidence(), windows=["some"])


def test_without_saes_the_methods_that_need_none_are_left() -> None:
    names = [grid.name for grid in space(evidence(saes=False))]
    assert names == ["diff_in_means", "project", "logit_bias"]


def test_a_candidate_is_what_its_parameters_say() -> None:
    found = evidence()
    by_name = {method.name: method for method in drawn(found, 40)}
    for candidate in by_name["diff_in_means"].candidates:
        at, vector = candidate.parameters, candidate.latent_set
        assert vector is not None and vector.layers == (at["layer"],)
        alone = diff_in_means(found.readings[at["reading"]], int(at["layer"]))  # type: ignore[index]
        expected = alone.edits_at(int(at["layer"])).vector * float(at["strength"])
        torch.testing.assert_close(vector.edits_at(int(at["layer"])).vector, expected)
        assert vector.defaults == WINDOWS[str(at["window"])] and candidate.strength == 1.0
    for candidate in by_name["live"].candidates:
        (tensors,) = candidate.latent_set.sites  # type: ignore[union-attr]
        kinds = {str(latent.edit).partition(":")[0] for latent in tensors.site.latents}
        gated = {latent.edit.gated for latent in tensors.site.latents}
        kind, _, gate = str(candidate.parameters["edit"]).partition("@")
        assert kinds == {kind} and gated == {bool(gate)}


def test_a_bias_has_its_peak_and_its_number_of_tokens() -> None:
    *_, biases = (m for m in drawn(evidence(), 96) if m.name == "logit_bias")
    for candidate in biases.candidates:
        assert candidate.logit_bias is not None
        peak = max(map(abs, candidate.logit_bias.values()))
        assert peak == pytest.approx(candidate.parameters["largest_bias"], rel=1e-5)
        assert len(candidate.logit_bias) == min(int(candidate.parameters["tokens"]), 46)


def test_each_value_is_drawn_equally_often() -> None:
    grid = Grid("m", lambda found, **values: None, {"a": "xyz", "b": range(10), "c": range(50)})
    points = grid.draw(30, seed=0)
    assert len(set(points)) == 30 and points != sorted(points)
    for axis, each in ((0, 10), (1, 3)):
        counts = Counter(point[axis] for point in points)
        # A point that was drawn twice is replaced by another one.
        assert all(abs(count - each) <= 1 for count in counts.values())
    assert grid.draw(10**6, seed=0) == list(itertools.product(range(3), range(10), range(50)))


def test_what_lies_around_the_best_points_differs_in_one_axis_and_is_new() -> None:
    grid = Grid("m", lambda found, **values: None, {"a": "xyz", "b": range(4)})
    assert grid.neighbours((1, 0)) == [(0, 0), (2, 0), (1, 1)]  # any letter, the next number
    known = [(1, 0), (0, 0)]
    assert set(grid.around([(1, 0), (2, 3)], known, 9, 0)) == {
        *((2, 0), (1, 1)),
        *((0, 3), (1, 3), (2, 2)),
    }
    first, second = grid.around([(1, 0), (2, 3)], known, 2, 0)  # from each in turn
    assert first in grid.neighbours((1, 0)) and second in grid.neighbours((2, 3))
    assert grid.around([], [(1, 0)], 3, 0) == []


def test_controls_are_random_latents_of_the_same_number_and_strength() -> None:
    found = evidence()
    (random,) = (grid for grid in space(found, controls=True) if grid.name == "random")
    (saif,) = (grid for grid in space(found) if grid.name == "saif")
    for candidate in (random.candidate(found, point) for point in random.draw(8, seed=0)):
        (tensors,) = candidate.latent_set.sites  # type: ignore[union-attr]
        assert 1 <= len(tensors.site.latents) <= int(candidate.parameters["k"])
    assert len(random.draw(10**6, 0)) == 20 / 4 * len(saif.draw(10**6, 0))
