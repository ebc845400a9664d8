"""What is known of a model, and when an SAE is refused for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from random_model import D_MODEL, N_LAYERS, tiny_model, tiny_sae
from transformers import BloomConfig, GPT2Config, LlamaConfig

from saif_fast.model_info import ModelInfo, check_sae, model_name, stored_name

MODEL = ModelInfo("org/tiny-it", D_MODEL, N_LAYERS)
LOCAL = ModelInfo("./tiny", D_MODEL, N_LAYERS)


def test_a_config_tells_name_shape_and_context() -> None:
    expected = ModelInfo("made/tiny", D_MODEL, N_LAYERS, context=64)
    assert ModelInfo.from_config(tiny_model().config) == expected


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (
            LlamaConfig(
                max_position_embeddings=64,
                rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            ),
            128,
        ),
        (GPT2Config(n_positions=32), 32),
        (BloomConfig(), None),
    ],
    ids=["llama", "linear rope", "gpt2", "bloom"],
)
def test_the_context_of_a_config(config: LlamaConfig, context: int | None) -> None:
    assert ModelInfo.from_config(config).context == context


def test_the_configs_own_name_wins() -> None:
    model = tiny_model()
    model.config.name_or_path = "somewhere/model"
    assert model_name(model.config) == "somewhere/model"
    model.config.model_name = "org/tiny"
    assert model_name(model.config) == "org/tiny"


def test_the_name_in_a_directorys_config(tmp_path: Path, monkeypatch) -> None:
    config = tmp_path / "config.json"
    assert stored_name(str(tmp_path)) is None
    for text, name in (('{"_name_or_path": "a/b"}', "a/b"), ("{}", None), ("{", None)):
        config.write_text(text)
        assert stored_name(str(tmp_path)) == name
    monkeypatch.chdir(tmp_path)
    config.write_text('{"_name_or_path": "a/b"}')
    assert stored_name("") is None and stored_name(".") == "a/b"


@pytest.mark.parametrize(
    ("cached", "name"),
    [("models--google--gemma-2-2b", "google/gemma-2-2b"), ("models--gpt2", "gpt2")],
)
def test_the_name_of_a_snapshot_in_the_hubs_cache(cached: str, name: str) -> None:
    assert stored_name(f"/home/user/.cache/huggingface/hub/{cached}/snapshots/607a30d7") == name


@pytest.mark.parametrize(
    ("model", "of"),
    [
        (MODEL, None),
        (MODEL, "tiny-it"),
        (MODEL, "/data/tiny-it"),
        (LOCAL, "org/tiny"),
        (dataclasses.replace(LOCAL, stored_name="org/base"), "base"),
    ],
    ids=["unnamed", "short", "path", "directory", "stored"],
)
def test_names_that_agree(model: ModelInfo, of: str | None) -> None:
    assert check_sae(tiny_sae(model_name=of), model) is None


@pytest.mark.parametrize(
    ("model", "of"),
    [(LOCAL, "org/base"), (MODEL, "./base"), (MODEL, "/data/models/base")],
    ids=["model", "sae", "sae, absolute"],
)
def test_a_path_proves_nothing(model: ModelInfo, of: str) -> None:
    doubt = check_sae(tiny_sae(model_name=of), model)
    assert doubt is not None and model.name in doubt and of in doubt


def test_a_directory_that_looks_like_a_hub_name_is_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sae, model = tiny_sae(model_name="org/base"), dataclasses.replace(MODEL, name="tiny")
    with pytest.raises(ValueError, match="got one of 'org/base'; allow_mismatch"):
        check_sae(sae, model)
    (tmp_path / "tiny").mkdir()
    assert check_sae(sae, model) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": N_LAYERS}, f"sae layer: expected 0 to {N_LAYERS - 1}, got {N_LAYERS}"),
        ({"layer": -1}, "got -1"),
    ],
)
def test_shapes_are_compared_first_and_always(change: dict[str, object], message: str) -> None:
    sae = tiny_sae(**{"model_name": "org/base", **change})
    with pytest.raises(ValueError, match=message):
        check_sae(sae, MODEL, allow_mismatch=True)
    with pytest.raises(ValueError, match="sae d_model: expected the model's 8, got 32"):
        check_sae(sae, dataclasses.replace(MODEL, d_model=8), allow_mismatch=True)
