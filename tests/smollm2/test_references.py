"""Names of the reference models, resolved in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from saif_fast import embedded, smollm2
from saif_fast.references import model_source, reference_of, sae_source, sae_sources


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SmolLM2's place in the cache, which is made by the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "saif-fast" / "smollm2"


def test_a_model_that_is_no_reference_is_what_it_is() -> None:
    assert model_source("org/model") == "org/model"
    assert model_source("./smollm2") == "./smollm2"


def test_the_models() -> None:
    assert model_source("embedded") == str(embedded.model_path())


def test_smollm2_is_where_it_was_fetched_to(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached.mkdir(parents=True)
    monkeypatch.setattr(smollm2, "_check_tensors", lambda path: None)
    assert model_source("smollm2") == str(cached)


@pytest.mark.parametrize(
    ("sae", "path"),
    [
        ("embedded", embedded.sae_path("last")),
        ("embedded:last", embedded.sae_path("last")),
        ("embedded:middle", embedded.sae_path("middle")),
        ("smollm2:23", smollm2.SAES / "layer23"),
    ],
)
def test_the_saes(sae: str, path: Path) -> None:
    assert sae_source(sae) == str(path)
    assert path.is_dir()


def test_an_sae_that_is_no_references_is_what_it_is() -> None:
    assert sae_source("release:id") == "release:id"
    assert sae_sources("release:id") == ["release:id"]


def test_smollm2_alone_is_all_of_its_saes() -> None:
    layers = (11, 14, 17, 20, 23, 26, 29)
    assert sae_sources("smollm2") == [str(smollm2.SAES / f"layer{layer}") for layer in layers]
    assert sae_sources("smollm2:23") == [sae_source("smollm2:23")]


@pytest.mark.parametrize("sae", ["embedded:first", "smollm2", "smollm2:12", "smollm2:"])
def test_an_sae_that_is_not_there_is_refused(sae: str) -> None:
    name = sae.partition(":")[0]
    with pytest.raises(ValueError, match=rf"^sae: expected .*{name}:\w+.*, got '{sae}"):
        sae_source(sae)


def test_without_the_repository_the_saes_are_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "SAES", tmp_path / "saes")
    with pytest.raises(ValueError, match="they are in saif-fast's repository and not in the"):
        sae_source("smollm2:23")


def test_a_recorded_name_is_a_reference_where_its_model_is_here(cached: Path) -> None:
    assert reference_of("org/model") is None
    assert reference_of("saif-fast/embedded") == "embedded"
    assert reference_of("HuggingFaceTB/SmolLM2-135M-Instruct") is None
    cached.mkdir(parents=True)
    assert reference_of("HuggingFaceTB/SmolLM2-135M-Instruct") == "smollm2"
