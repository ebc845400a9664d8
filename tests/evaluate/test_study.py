from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from saif_fast import __version__
from saif_fast.evaluate.candidates import constant
from saif_fast.evaluate.study import (
    MAX_BIASES,
    Search,
    Subject,
    choose,
    report,
)
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Runtime
from saif_fast.tasks import Task

SMALL = Search(ks=(1, 3, 5, 10), betas=(-1.0, -0.5, 0.0, 0.5, 1.0), norms=(1.0,))
TUNED = {
    *("saif", "diff_in_means", "live", "project", "random", "noise"),
    *("logit_bias", "logit_bias_full", "logit_bias_no_sae", "logit_bias_no_sae_full"),
    *("saif_middle", "live_middle", "diff_in_means_middle", "project_middle"),
}


@pytest.fixture(scope="module")
def choices(subject: Subject, french: Task):
    return choose(french, subject, SMALL, n_select=6)


def test_every_row_is_there_and_had_the_same_number_of_candidates(choices) -> None:
    assert {choice.method for choice in choices} == {"unsteered", "prompted", *TUNED}
    assert {c.n_candidates for c in choices if c.method in TUNED} == {SMALL.size}
    assert {choice.selected.n for choice in choices} == {6}


def test_every_set_says_which_version_made_it(choices) -> None:
    sets = {c.method: s for c in choices if (s := c.candidate.latent_set) is not None}
    assert {"saif", "random", "noise", "project"} <= set(sets)
    assert {name: s.provenance.version for name, s in sets.items()} == dict.fromkeys(
        sets, __version__
    )


def test_biases_are_16_tokens_or_the_whole_vocabulary(choices, subject: Subject) -> None:
    biases = {c.method: len(c.candidate.logit_bias) for c in choices if c.candidate.logit_bias}
    assert biases == {
        "logit_bias": 16,
        "logit_bias_no_sae": 16,
        "logit_bias_full": subject.model.config.vocab_size,
        "logit_bias_no_sae_full": subject.model.config.vocab_size,
    }


def test_controls_have_the_norm_of_the_chosen_set(choices) -> None:
    norms = {
        c.method: constant(c.candidate.latent_set).norm().item()
        for c in choices
        if c.method in ("saif", "random", "noise")
    }
    assert norms["random"] == pytest.approx(norms["saif"], rel=1e-4)
    assert norms["noise"] == pytest.approx(norms["saif"], rel=1e-4)


def test_report_runs_on_report_contents_and_wide_biases_on_transformers(
    choices, subject: Subject, french: Task
) -> None:
    opened: list[list[str]] = []

    def open_with(sets: Mapping[str, LatentSet]) -> Runtime:
        opened.append(sorted(sets))
        return subject.open(sets)

    rows, replies = report({"french": choices}, {"french": french}, subject, "other", open_with, 4)
    assert len(opened) == 1 and "french" in opened[0] and "french.live" in opened[0]
    wide = {c.method for c in choices if len(c.candidate.logit_bias or ()) > MAX_BIASES}
    runtimes = {method: row.runtime for method, row in rows["french"].items()}
    assert {method for method, name in runtimes.items() if name == "transformers"} == wide
    assert set(runtimes) == {choice.method for choice in choices}
    for answers in replies["french"].values():
        assert tuple(reply.content for reply in answers) == french.report[:4]
    assert rows["french"]["prompted"].strict == 1.0
    assert rows["french"]["unsteered"].strict == 0.0


@pytest.mark.parametrize(
    "options",
    [{"ks": (1, 2)}, {"norms": (0.5, 1.0, 2.0, 4.0)}, {"ks": (1, 2, 3), "norms": (1.0,)}],
    ids=["too few", "fewer than 20 draws", "odd"],
)
def test_a_search_that_cannot_be_equal_is_refused(options) -> None:
    with pytest.raises(ValueError, match="at least 20 draws"):
        Search(**options)


def test_studies_are_deterministic(subject: Subject, french: Task, choices) -> None:
    torch.manual_seed(99)
    again = choose(french, subject, SMALL, n_select=6)
    assert [(c.method, c.candidate.parameters, c.selected) for c in again] == [
        (c.method, c.candidate.parameters, c.selected) for c in choices
    ]
