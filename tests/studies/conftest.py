"""The embedded model as studies see it, with small budgets; read and measured once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from saif_fast import embedded
from saif_fast.evaluate.subject import Subject
from saif_fast.sae import load_sae
from saif_fast.search import Track
from saif_fast.set_dir import SetDirectory
from saif_fast.studies import STUDIES, Budget, StudyContext, StudyResult
from saif_fast.studies.protocol import OneModel
from saif_fast.tasks.embedded import embedded_task


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyContext]:
    subject = Subject.of(
        AutoModelForCausalLM.from_pretrained(embedded.model_path()).eval(),
        AutoTokenizer.from_pretrained(embedded.model_path()),
        [load_sae(embedded.sae_path("middle")), load_sae(embedded.sae_path("last"))],
    )
    sets = SetDirectory(tmp_path_factory.mktemp("sets"))
    runtime = subject.open(sets)
    track = Track("transformers", runtime, sets, subject.prompter, lambda line: None)
    several = {name: embedded_task(name) for name in ("french", "json", "keyword")}
    budget = Budget(report=12, select=4, pairs=48, contents=6, draws=2)
    yield StudyContext("embedded", subject, {"french": several["french"]}, several, track, budget)
    runtime.close()


@pytest.fixture(scope="session")
def result(context: StudyContext) -> Callable[[str], StudyResult]:
    """Run a study of one model by name, once."""
    found: dict[str, StudyResult] = {}

    def run(name: str) -> StudyResult:
        if name not in found:
            study = STUDIES[name]
            assert isinstance(study, OneModel)
            found[name] = study.run(context)
        return found[name]

    return run


@pytest.fixture
def one_sae(context: StudyContext) -> StudyContext:
    """The same with the SAE of the last layer alone."""
    subject = replace(context.subject, sae=context.subject.saes[-1], others={})
    return replace(context, subject=subject)
