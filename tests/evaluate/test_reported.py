"""What the README says of the embedded model, on report contents, through the reference runtime."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from saif_fast import embedded
from saif_fast.evaluate.engine import Choice, select
from saif_fast.evaluate.methods import Method, log_grid
from saif_fast.evaluate.results import Row
from saif_fast.evaluate.rows import bias_rows, projections, random_latents
from saif_fast.evaluate.study import (
    SCOPES,
    Search,
    Subject,
    identify,
    instruction_shift,
    measure,
    report,
    tune,
)
from saif_fast.sae import SparseAutoencoder
from saif_fast.tasks import get_task

TASKS = ("french", "german", "json", "keyword", "upper_case")
SEARCH, N_SELECT, N_REPORT = Search(), 24, 100


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(
        AutoModelForCausalLM.from_pretrained(embedded.model_path()).eval(),
        AutoTokenizer.from_pretrained(embedded.model_path()),
        SparseAutoencoder.from_saelens(embedded.sae_path("last")),
        {"middle": SparseAutoencoder.from_saelens(embedded.sae_path("middle"))},
    )


@pytest.fixture(scope="module")
def rows(subject: Subject) -> dict[str, dict[str, Row]]:
    tasks = {name: get_task(name) for name in TASKS}
    choices: dict[str, Sequence[Choice]] = {}
    for name, task in tasks.items():
        statistics = measure(subject.sae, subject, identify(task, subject))
        saif = tune(task, subject, statistics, SEARCH, N_SELECT)
        random: Method = random_latents(
            statistics, saif.candidate.latent_set, SEARCH.draws, SEARCH.norms, SEARCH.seed
        )
        contents = task.select[:N_SELECT]
        choices[name] = [saif, *select(task, [random], contents, subject.prompter, subject.open)]
    found, _ = report(choices, tasks, subject, "transformers", subject.open, N_REPORT)
    return found


def test_saif_reaches_90_percent_strict_in_one_task_and_60_in_four(rows) -> None:
    strict = sorted((by_method["saif"].strict for by_method in rows.values()), reverse=True)
    assert strict[0] >= 0.9
    assert strict[3] >= 0.6


def test_saifs_interval_is_above_that_of_tuned_random_latents_in_four(rows) -> None:
    above = [name for name, row in rows.items() if row["saif"].low > row["random"].high]
    assert len(above) >= 4


def test_a_live_edit_at_the_middle_layer_beats_logit_biases_without_an_sae(subject) -> None:
    # In the table it also beats those read off SAIF's set, which does nothing for this task.
    task = get_task("one_word")
    activations = identify(task, subject)
    multiples = log_grid(*SEARCH.strengths, SEARCH.size // 2)
    methods = [
        projections("project", activations, subject.others["middle"].layer, multiples, SCOPES),
        *bias_rows("bias", instruction_shift(subject, activations), SEARCH.biases, SEARCH.size),
    ]
    contents = task.select[:N_SELECT]
    chosen = select(task, methods, contents, subject.prompter, subject.open)
    found, _ = report(
        {"one_word": chosen}, {"one_word": task}, subject, "transformers", subject.open, N_REPORT
    )
    best_bias = max(found["one_word"][name].high for name in ("bias", "bias_full"))
    assert found["one_word"]["project"].low > best_bias
