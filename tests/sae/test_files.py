from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saif_fast.sae import load_sae

ARCHITECTURES = ["standard", "jumprelu", "topk", "gated"]


def load_error(directory: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_sae(directory, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_directory_loads_without_sae_lens(write_sae, architecture, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    sae = load_sae(write_sae(architecture))
    assert (sae.d_model, sae.d_sae, sae.layer, sae.name) == (6, 10, 3, "sae")
    assert sae.architecture == architecture
    assert sae.k == (3 if architecture == "topk" else None)


def test_release_without_sae_lens_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ValueError, match=r"pip install 'saif-fast\[identify\]'"):
        load_sae("gemma-scope-2b-pt-res-canonical:layer_25/width_16k")


def test_neither_directory_nor_release(tmp_path):
    assert "expected a directory or RELEASE:ID" in load_error(tmp_path / "absent")
    with pytest.raises(ValueError, match="expected a directory or RELEASE:ID"):
        load_sae("release-without-id")


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_missing_file_is_named(write_sae, name):
    directory = write_sae()
    (directory / name).unlink()
    assert f"{directory / name}: no such file" in load_error(directory)


def test_truncated_config(write_sae):
    directory = write_sae()
    (directory / "cfg.json").write_text('{"architecture": "stan')
    assert "cfg.json: " in load_error(directory)


@pytest.mark.parametrize("size", [0, 4, 40, -8], ids=lambda size: f"{size}-bytes")
def test_truncated_weights(write_sae, size):
    directory = write_sae()
    weights = directory / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert "sae_weights.safetensors: not a complete safetensors file" in load_error(directory)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was loaded",))


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_pickle_named_safetensors_is_refused_unread(write_sae, kind):
    directory = write_sae()
    weights = directory / "sae_weights.safetensors"
    if kind == "pickle":
        weights.write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"W_enc": _Bomb()}, weights)
    assert "a pickle or zip archive, not safetensors" in load_error(directory)


@pytest.mark.parametrize(
    "tensor", ["W_enc", "W_dec", "b_dec", "b_enc", "threshold", "b_gate", "b_mag", "r_mag"]
)
@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "inf", "integer"])
def test_damaged_tensor_is_named(write_sae, tensor, damage):
    architecture = {"threshold": "jumprelu", "b_gate": "gated", "b_mag": "gated", "r_mag": "gated"}
    directory = write_sae(architecture.get(tensor, "standard"))
    tensors = load_file(directory / "sae_weights.safetensors")
    if damage == "missing":
        del tensors[tensor]
    elif damage == "shape":
        tensors[tensor] = tensors[tensor][1:].contiguous()
    elif damage == "integer":
        tensors[tensor] = tensors[tensor].long()
    else:
        tensors[tensor].flatten()[0] = float(damage)
    save_file(tensors, directory / "sae_weights.safetensors")
    assert tensor in load_error(directory)


def test_transposed_decoder_is_refused(write_sae):
    directory = write_sae()
    tensors = load_file(directory / "sae_weights.safetensors")
    tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    save_file(tensors, directory / "sae_weights.safetensors")
    assert "W_dec: expected [10, 6] of floats, got [6, 10]" in load_error(directory)


def test_unknown_tensor_is_refused(write_sae):
    directory = write_sae()
    tensors = load_file(directory / "sae_weights.safetensors")
    save_file({**tensors, "W_skip": torch.ones(6, 6)}, directory / "sae_weights.safetensors")
    assert "W_skip" in load_error(directory)


@pytest.mark.parametrize("value", [1.0, 1.5])
def test_finetuning_scaling_factor_is_dropped_only_where_it_does_nothing(write_sae, value):
    directory = write_sae()
    tensors = load_file(directory / "sae_weights.safetensors")
    tensors["scaling_factor"] = torch.full((10,), value)
    save_file(tensors, directory / "sae_weights.safetensors")
    if value == 1.0:
        assert load_sae(directory).architecture == "standard"
    else:
        assert "scaling_factor" in load_error(directory)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"activation_fn": "tanh-relu"}, "activation_fn"),
        ({"k": 5}, "`k`"),
        ({"decoder_init_norm": 0.1}, "training checkpoint"),
        ({"d_sae": "10"}, "d_sae"),
        ({"d_sae": 12}, "W_dec: expected"),
        ({"normalize_activations": "unit"}, "got 'unit'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations"),
        ({"normalize_activations": "expected_average_only_in"}, "norm_scaling_factor: expected"),
        ({"normalize_activations": "covariance_whitening"}, "activation_whitening.safetensors"),
        ({"metadata": {"hook_name": None}}, "hook_name is missing"),
        ({"metadata": {"hook_name": "blocks.3.hook_mlp_out"}}, "expected the residual stream"),
        ({"metadata": {"hook_head_index": 2}}, "attention head"),
        ({"metadata": {"hook_name_out": "blocks.3.hook_mlp_out"}}, "hook_name_out"),
        ({"metadata": {"hf_hook_name": "model.layers.4"}}, "hf_hook_name"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "center_writing_weights",
        ),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_config_that_the_canonical_form_cannot_hold(write_sae, changes, message):
    assert message in load_error(write_sae("standard", **changes))


@pytest.mark.parametrize(
    "architecture, reason",
    [
        ("transcoder", "writes another"),
        ("skip_transcoder", "writes another"),
        ("jumprelu_transcoder", "writes another"),
        ("jumprelu_skip_transcoder", "writes another"),
        ("temporal", "other tokens"),
        ("matching_pursuit", "dependent steps"),
        ("abstopk", "negative"),
        ("batchtopk", "save_inference_model"),
        ("matryoshka_batchtopk", "save_inference_model"),
        ("crosscoder", "expected one of standard, jumprelu, topk, gated"),
        (["standard"], "expected one of standard, jumprelu, topk, gated"),
    ],
    ids=str,
)
def test_other_architectures_are_refused_with_the_reason(write_sae, architecture, reason):
    config = {"architecture": architecture, "metadata": {}, "d_out": 4}
    assert reason in load_error(write_sae("standard", config=config))


@pytest.mark.parametrize("key", ["d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations"])
def test_missing_config_key_is_named(write_sae, key):
    directory = write_sae()
    config = json.loads((directory / "cfg.json").read_text())
    del config[key]
    assert key in load_error(write_sae("standard", config=config))


def test_topk_without_k_is_refused(write_sae):
    directory = write_sae("topk")
    config = json.loads((directory / "cfg.json").read_text())
    del config["k"]
    assert "`k`" in load_error(write_sae("topk", config=config))


@pytest.mark.parametrize("k", [0, 11])
def test_topk_k_out_of_range(write_sae, k):
    assert f"k: expected 1 to 10, got {k}" in load_error(write_sae("topk", k=k))


def test_format_before_sae_lens_6_says_how_to_convert(write_sae):
    old = {"architecture": "standard", "d_in": 6, "d_sae": 10, "hook_name": "blocks.3.hook_z"}
    assert "SAE.load_from_disk(old).save_model(new)" in load_error(
        write_sae("standard", config=old)
    )


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_absurd_norm_factor(write_sae, factor):
    directory = write_sae("standard", normalize_activations="expected_average_only_in")
    assert "expected a positive number" in load_error(directory, norm_scaling_factor=factor)


def test_norm_factor_that_nothing_uses_is_refused(write_sae):
    assert "norm_scaling_factor: expected none" in load_error(write_sae(), norm_scaling_factor=2.0)


def test_norm_factor_that_contradicts_the_files_is_refused(write_sae):
    directory = write_sae("standard", normalize_activations="expected_average_only_in")
    (directory / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    assert "expected 2.0" in load_error(directory, norm_scaling_factor=3.0)


def test_whitening_of_another_width_is_refused(write_sae):
    directory = write_sae("standard", normalize_activations="covariance_whitening")
    save_file(
        {"mean": torch.zeros(5), "matrix": torch.eye(5), "inverse_matrix": torch.eye(5)},
        directory / "activation_whitening.safetensors",
    )
    assert "activation_whitening.safetensors: expected [[6]" in load_error(directory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_stored_dtype_becomes_float32(write_sae, dtype):
    directory = write_sae("jumprelu")
    tensors = load_file(directory / "sae_weights.safetensors")
    save_file(
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        directory / "sae_weights.safetensors",
    )
    sae = load_sae(directory)
    assert sae.W_dec.dtype == torch.float32
    assert torch.equal(sae.W_dec, tensors["W_dec"].to(dtype).float())
