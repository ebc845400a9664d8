from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from saif_fast import embedded
from saif_fast.evaluate.study import activations_of, measure
from saif_fast.evaluate.subject import Subject
from saif_fast.identify import ActivationSet, LatentStatistics
from saif_fast.sae import load_sae
from saif_fast.tasks import Task
from saif_fast.tasks.embedded import embedded_task


@pytest.fixture(scope="session")
def subject() -> Subject:
    """The embedded model with both of its SAEs."""
    return Subject(
        AutoModelForCausalLM.from_pretrained(embedded.model_path()).eval(),
        AutoTokenizer.from_pretrained(embedded.model_path()),
        load_sae(embedded.sae_path("last")),
        {"middle": load_sae(embedded.sae_path("middle"))},
    )


@pytest.fixture(scope="session")
def french() -> Task:
    return embedded_task("french")


@pytest.fixture(scope="session")
def activations(subject: Subject, french: Task) -> ActivationSet:
    return activations_of(french, subject)


@pytest.fixture(scope="session")
def statistics(subject: Subject, activations: ActivationSet) -> LatentStatistics:
    return measure(subject.sae, subject, activations)
