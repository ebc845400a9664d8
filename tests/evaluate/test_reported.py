"""What the README says of the embedded model, on report contents, through the reference runtime."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from saif_fast.evaluate.candidates import random_latents
from saif_fast.evaluate.methods import Method
from saif_fast.evaluate.results import ResultRow
from saif_fast.evaluate.study import (
    Search,
    Subject,
    activations_of,
    choose,
    measure,
    report,
    tune,
)
from saif_fast.evaluate.trials import Choice, select
from saif_fast.tasks.embedded import embedded_task

pytestmark = pytest.mark.extended  # a minute: a study of five tasks

TASKS = ("french", "german", "json", "keyword", "upper_case")
SEARCH, N_SELECT, N_REPORT = Search(), 24, 100


@pytest.fixture(scope="module")
def rows(subject: Subject) -> dict[str, dict[str, ResultRow]]:
    tasks = {name: embedded_task(name) for name in TASKS}
    choices: dict[str, Sequence[Choice]] = {}
    for name, task in tasks.items():
        statistics = measure(subject.sae, subject, activations_of(task, subject))
        saif = tune(task, subject, statistics, SEARCH, N_SELECT)
        random: Method = random_latents(
            statistics, saif.candidate.latent_set, SEARCH.draws, SEARCH.norms, SEARCH.seed
        )
        contents = task.select[:N_SELECT]
        choices[name] = [saif, *select(task, [random], contents, subject.prompter, subject.open)]
    found, _ = report(choices, tasks, subject, "transformers", subject.open, N_REPORT)
    return found


def test_saif_reaches_90_percent_strict_in_one_task(rows) -> None:
    assert max(by_method["saif"].strict for by_method in rows.values()) >= 0.9


def test_saif_reaches_60_percent_in_four_tasks_and_is_above_tuned_random_latents_there(
    rows,
) -> None:
    good = [
        name
        for name, row in rows.items()
        if row["saif"].strict >= 0.6 and row["saif"].low > row["random"].high
    ]
    assert len(good) >= 4


def test_a_live_edit_at_the_middle_layer_beats_every_logit_bias(subject) -> None:
    task = embedded_task("one_word")
    chosen = choose(task, subject, SEARCH, N_SELECT)
    kept = [c for c in chosen if c.method.startswith(("logit_bias", "project_middle"))]
    found, _ = report(
        {task.name: kept}, {task.name: task}, subject, "transformers", subject.open, N_REPORT
    )
    rows = dict(found[task.name])
    live = rows.pop("project_middle")
    assert len(rows) == 4
    assert live.low > max(bias.high for bias in rows.values())
