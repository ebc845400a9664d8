"""A model and an SAE are compared before the model's weights are even looked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from one_sentence import sentence

from saif_fast import embedded
from saif_fast.latent_set import LatentSet
from saif_fast.sae import load_sae

NAME = "SmolLM2-135M-Instruct"


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def a_model(directory: Path, **config: Any) -> Path:
    """The embedded model in a directory, with these values in its config."""
    shutil.copytree(embedded.model_path(), directory)
    changed(directory / "config.json", **{"model_name": None, **config})
    return directory


def an_sae(directory: Path, model_name: str) -> Path:
    """The embedded model's SAE, said to be that of another one."""
    shutil.copytree(embedded.sae_path(), directory)
    config = json.loads((directory / "cfg.json").read_text())
    changed(directory / "cfg.json", metadata={**config["metadata"], "model_name": model_name})
    return directory


def pairs(directory: Path) -> Path:
    file = directory / "pairs.jsonl"
    sides = {"positive": "Tell me about my cat. Answer in French.", "negative": "Tell me of it."}
    lines = [json.dumps({**sides, "group": group}) for group in ("a", "b")]
    file.write_text("\n".join(lines))
    return file


def test_a_directorys_name_is_not_held_against_the_sae(saif, tmp_path: Path) -> None:
    model, sae = a_model(tmp_path / "smol"), an_sae(tmp_path / "sae29", NAME)
    output = tmp_path / "set.safetensors"
    result = saif(
        *("identify", "--model", model, "--sae", sae, "--pairs", pairs(tmp_path), "-o", output),
    )
    assert result.exit_code == 0, result.stderr
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    for known in (str(model), NAME, "d_model 64, 3 layers", "explained variance"):
        assert known in warning
    assert LatentSet.load(output).provenance.model == str(model)


def test_the_name_that_a_config_keeps_is_the_models(saif, tmp_path: Path) -> None:
    model = a_model(tmp_path / "smol", _name_or_path=f"HuggingFaceTB/{NAME}")
    sae, output = an_sae(tmp_path / "sae29", NAME), tmp_path / "set.safetensors"
    result = saif(
        *("identify", "--model", model, "--sae", sae, "--pairs", pairs(tmp_path), "-o", output),
    )
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr


def test_a_norm_factor_that_the_files_lack_is_given_as_an_option(saif, tmp_path: Path) -> None:
    sae, output = tmp_path / "sae", tmp_path / "set.safetensors"
    shutil.copytree(embedded.sae_path(), sae)
    changed(sae / "cfg.json", normalize_activations="expected_average_only_in")
    files = ("--model", "embedded", "--sae", sae, "--pairs", pairs(tmp_path), "-o", output)
    assert "norm_scaling_factor: expected the factor" in sentence(saif("identify", *files))
    assert saif("identify", *files, "--norm-scaling-factor", "0.5").exit_code == 0
    # The SAE reads half of the model's unit, so it writes twice of its own.
    (site,) = LatentSet.load(output).sites
    rows = load_sae(embedded.sae_path()).W_dec[[latent.index for latent in site.site.latents]]
    torch.testing.assert_close(site.W_dec, 2 * rows)


# Of the model's config, and what is said of it and the SAE of SmolLM2-135M-Instruct.
MISFITS: Mapping[str, tuple[dict[str, Any], str]] = {
    "width": ({"hidden_size": 128}, "sae d_model: expected the model's 128, got 64"),
    "layer": ({"num_hidden_layers": 2}, "sae layer: expected 0 to 1, got 2"),
    "name": (
        {"model_name": "google/gemma-2-2b"},
        "expected one of 'google/gemma-2-2b' (d_model 64, 3 layers), got one of "
        f"'{NAME}'; allow_mismatch (--allow-mismatch) takes it",
    ),
    "stored name": ({"_name_or_path": "google/gemma-2-2b"}, "by its files 'google/gemma-2-2b'"),
}


@pytest.mark.parametrize(("config", "says"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("command", ["identify", "eval"])
def test_a_misfit_is_refused_before_the_weights_are_loaded(
    saif, tmp_path: Path, command: str, config: dict[str, Any], says: str
) -> None:
    model, sae = a_model(tmp_path / "model", **config), an_sae(tmp_path / "sae", NAME)
    (model / "model.safetensors").unlink()
    rest = {
        "identify": ("--instruction", "french", "-o", tmp_path / "set.safetensors"),
        "eval": ("--task", "french"),
    }[command]
    assert says in sentence(saif(command, "--model", model, "--sae", sae, *rest))


@pytest.mark.parametrize("name", ["width", "layer"])
def test_no_shape_is_taken_by_allowing_a_mismatch(saif, tmp_path: Path, name: str) -> None:
    config, says = MISFITS[name]
    model = a_model(tmp_path / "model", **config)
    result = saif(
        *("identify", "--model", model, "--sae", "embedded", "--instruction", "french"),
        *("--allow-mismatch", "-o", tmp_path / "set.safetensors"),
    )
    assert says in sentence(result)


@pytest.mark.parametrize("name", ["width", "layer"])
def test_make_refuses_the_sae_of_another_shape(saif, tmp_path: Path, name: str) -> None:
    config, says = MISFITS[name]
    model, output = a_model(tmp_path / "model", **config), tmp_path / "set.safetensors"
    arguments = ("--sae", "embedded", "--latent", "5=ablate", "-o", output)
    assert says in sentence(saif("make", "--model", model, *arguments))
    assert not output.exists()


def test_make_says_that_the_names_differ(saif, tmp_path: Path) -> None:
    model, sae = a_model(tmp_path / "smol"), an_sae(tmp_path / "sae29", NAME)
    output = tmp_path / "set.safetensors"
    result = saif("make", "--model", model, "--sae", sae, "--latent", "5=ablate", "-o", output)
    assert result.exit_code == 0 and output.exists()
    assert f"got one of '{NAME}', whose shape fits" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "export", "generate"])
def test_a_set_of_another_shape_is_refused_before_the_weights_are_loaded(
    saif, french: Path, tmp_path: Path, command: str
) -> None:
    model = a_model(tmp_path / "model", hidden_size=128)
    (model / "model.safetensors").unlink()
    arguments = {
        "inspect": (french,),
        "export": (french, "--logit-bias", "4"),
        "generate": ("--set-dir", french.parent, "--saif", "french", "--runtime", "vllm"),
    }[command]
    error = sentence(saif(command, *arguments, "--model", model, stdin="Tell me."))
    assert command != "generate" or "set 'french': " in error
    assert "hidden size 64 and 3 layers" in error and "hidden size 128 and 3 layers" in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--instruction", "french", "--k", "5000"), "k: expected 1 to 1024"),
        (("--instruction", "french", "--beta", "nan"), "beta: expected a finite number, got nan"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else None,
)
def test_what_no_set_could_be_made_of_is_refused_before_the_model_loads(
    saif, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    result = saif(
        *("identify", "--model", "missing", "--sae", "embedded", *options),
        *("-o", tmp_path / "set.safetensors"),
    )
    assert says in sentence(result)
