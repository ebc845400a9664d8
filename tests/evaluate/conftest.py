from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from saif_fast import embedded
from saif_fast.evaluate.study import Subject
from saif_fast.sae import load_sae


@pytest.fixture(scope="session")
def subject() -> Subject:
    """The embedded model with both of its SAEs."""
    return Subject(
        AutoModelForCausalLM.from_pretrained(embedded.model_path()).eval(),
        AutoTokenizer.from_pretrained(embedded.model_path()),
        load_sae(embedded.sae_path("last")),
        {"middle": load_sae(embedded.sae_path("middle"))},
    )
