"""Ours, in fp32, against sae-lens' own encode and decode in float64 on the same stored files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.saes import sae as sae_lens_sae
from safetensors.torch import save_file
from torch import Tensor

from saif_fast.sae import SparseAutoencoder, load_sae

D_MODEL, D_SAE, K = 12, 40, 7
# fp32 rounding of sums of 12 products of order 1, through one fold and two matrix products.
TOLERANCE = 2e-5
# A latent nearer to its threshold (or rank) than this may be on either side.
EDGE = 1e-4

ARCHITECTURES = ["standard", "jumprelu", "topk", "topk-rescaled", "gated"]
CLASSES = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
    "topk-rescaled": (
        sae_lens.TopKSAE,
        sae_lens.TopKSAEConfig,
        {"k": K, "rescale_acts_by_decoder_norm": True},
    ),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
}
TRAINING = {
    "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig, {}),
    "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig, {}),
    "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig, {"k": K}),
    "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig, {}),
    "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig, {"k": K}),
    "matryoshka_batchtopk": (
        sae_lens.MatryoshkaBatchTopKTrainingSAE,
        sae_lens.MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": K, "matryoshka_widths": [10, D_SAE]},
    ),
}


def make(table: dict[str, Any], name: str, **settings: Any) -> Any:
    """A small sae-lens SAE with every parameter random, so that no bias or norm is trivial."""
    sae_class, config_class, own = table[name]
    metadata = sae_lens_sae.SAEMetadata(hook_name="blocks.3.hook_resid_post", model_name="tiny")
    sae = sae_class(config_class(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata, **own, **settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(6)).double() * 3


def assert_same(ours: SparseAutoencoder, theirs: Any, x: Tensor) -> None:
    """``theirs`` is in float64; latents on an edge are left out, and must be rare."""
    with torch.no_grad():
        a_theirs = theirs.encode(x)
        x_theirs = theirs.decode(a_theirs)
    a_ours = ours.encode(x)
    assert a_ours.dtype == torch.float32 and a_ours.shape == a_theirs.shape
    assert 0 < (a_theirs > 0).double().mean() < 1
    flips = (a_ours > 0) != (a_theirs > 0)
    assert flips.double().mean() < 1e-3
    scale = a_theirs.abs().max()
    torch.testing.assert_close(
        a_ours.double()[~flips], a_theirs[~flips], rtol=0, atol=TOLERANCE * scale.item()
    )
    if flips.any():
        assert _distance_to_edge(ours, x)[flips].max() < EDGE * scale
    x_ours = ours.decode(a_theirs.float(), x)
    bound = TOLERANCE * x_theirs.abs().max().item()
    torch.testing.assert_close(x_ours.double(), x_theirs, rtol=0, atol=bound)


def _distance_to_edge(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    pre = x.float() @ sae.W_enc + sae.b_enc
    edge = sae.threshold if sae.k is None else pre.topk(sae.k).values[..., -1:]
    return (pre - edge).abs()


def load_float64(directory: Path) -> Any:
    return sae_lens.SAE.load_from_disk(directory, dtype="float64")


@pytest.mark.parametrize("apply_b_dec", [True, False], ids=["b_dec-subtracted", "b_dec-not"])
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_by_sae_lens(tmp_path, architecture, normalization, apply_b_dec):
    settings = {"normalize_activations": normalization, "apply_b_dec_to_input": apply_b_dec}
    make(CLASSES, architecture, **settings).save_model(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.normalization == normalization
    # The tiny tokens are of the size of layer_norm's epsilon.
    x = torch.cat([tokens(300), tokens(30) * 1e-5])
    assert_same(ours, load_float64(tmp_path), x)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_leading_dimensions(tmp_path, architecture):
    make(CLASSES, architecture).save_model(tmp_path)
    assert_same(load_sae(tmp_path), load_float64(tmp_path), tokens(3, 5))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk-rescaled", "gated"])
def test_after_sae_lens_folded_the_decoder_norm(tmp_path, architecture):
    sae = make(CLASSES, architecture)
    sae.fold_W_dec_norm()
    sae.save_model(tmp_path)
    assert_same(load_sae(tmp_path), load_float64(tmp_path), tokens(300))


@pytest.mark.parametrize("where", ["argument", "activation_scaler.json"])
@pytest.mark.parametrize("apply_b_dec", [True, False], ids=["b_dec-subtracted", "b_dec-not"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dataset_norm(tmp_path, architecture, apply_b_dec, where):
    settings = {"normalize_activations": "expected_average_only_in"}
    make(CLASSES, architecture, apply_b_dec_to_input=apply_b_dec, **settings).save_model(tmp_path)
    if where == "argument":
        ours = load_sae(tmp_path, norm_scaling_factor=0.37)
    else:
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
        ours = load_sae(tmp_path)
    theirs = load_float64(tmp_path)
    theirs.fold_activation_norm_scaling_factor(0.37)
    assert ours.can_edit_live == ("topk" not in architecture)
    assert_same(ours, theirs, tokens(300))


@pytest.mark.parametrize("apply_b_dec", [True, False], ids=["b_dec-subtracted", "b_dec-not"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whitening(tmp_path, architecture, apply_b_dec):
    settings = {"normalize_activations": "covariance_whitening"}
    make(CLASSES, architecture, apply_b_dec_to_input=apply_b_dec, **settings).save_model(tmp_path)
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(D_MODEL, generator=generator).double()
    matrix = torch.randn(D_MODEL, D_MODEL, generator=generator).double() + 4 * torch.eye(D_MODEL)
    inverse = torch.linalg.inv(matrix).contiguous()
    save_file(
        {"mean": mean, "matrix": matrix, "inverse_matrix": inverse},
        tmp_path / "activation_whitening.safetensors",
    )
    theirs = load_float64(tmp_path)
    theirs.fold_activation_whitening(mean, matrix, inverse)
    assert_same(load_sae(tmp_path), theirs, tokens(300))


@pytest.mark.parametrize("architecture", TRAINING)
def test_saved_after_training(tmp_path, architecture):
    sae = make(TRAINING, architecture)
    if "batchtopk" in architecture:
        sae.topk_threshold.fill_(2.5)
    sae.save_inference_model(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.architecture == ("jumprelu" if "batchtopk" in architecture else architecture)
    assert_same(ours, load_float64(tmp_path), tokens(300))


@pytest.mark.parametrize("architecture", TRAINING)
def test_training_checkpoint_is_refused(tmp_path, architecture):
    make(TRAINING, architecture).save_model(tmp_path)
    with pytest.raises(ValueError, match="save_inference_model"):
        load_sae(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stored_in_half_precision(tmp_path, architecture, dtype):
    make(CLASSES, architecture).to(dtype=getattr(torch, dtype)).save_model(tmp_path)
    assert_same(load_sae(tmp_path), load_float64(tmp_path), tokens(300))


def test_negative_jumprelu_threshold_is_zero(tmp_path):
    sae = make(CLASSES, "jumprelu")
    assert (sae.threshold < 0).any()
    sae.save_model(tmp_path)
    ours = load_sae(tmp_path)
    assert torch.equal(ours.threshold, sae.threshold.detach().clamp(min=0))


def test_rescaled_topk_ignores_a_latent_without_decoder_row(tmp_path):
    sae = make(CLASSES, "topk-rescaled")
    with torch.no_grad():
        sae.W_dec[4] = 0
    sae.save_model(tmp_path)
    ours = load_sae(tmp_path)
    theirs = load_float64(tmp_path)
    a = ours.encode(tokens(300))
    torch.testing.assert_close(a.double(), theirs.encode(tokens(300)).detach(), rtol=0, atol=1e-3)
    assert (a[:, 4] == 0).all() and ours.decode(a).isfinite().all()


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_zero_is_inactive(tmp_path, architecture):
    sae = make(CLASSES, architecture)
    with torch.no_grad():
        for name in ("b_enc", "b_dec", "threshold"):
            if hasattr(sae, name):
                getattr(sae, name).zero_()
    sae.save_model(tmp_path)
    a = load_sae(tmp_path).encode(torch.zeros(2, D_MODEL))
    assert torch.equal(a, sae.encode(torch.zeros(2, D_MODEL)).detach())


def test_gated_is_one_thresholded_row_exactly(tmp_path):
    """Every order of gate edge, magnitude edge and zero, in numbers that leave no rounding."""
    gates = [-3.0, -1.0, 0.0, 2.0]
    grid = [(g, m, r) for g in gates for m in (-4.0, -1.0, 0.0, 3.0) for r in (0.5, 1.0, 2.0)]
    b_gate, b_mag, scale = torch.tensor(grid).T
    config = sae_lens.GatedSAEConfig(
        d_in=1,
        d_sae=len(grid),
        metadata=sae_lens_sae.SAEMetadata(hook_name="blocks.0.hook_resid_post"),
    )
    sae = sae_lens.GatedSAE(config)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.b_dec.fill_(1.0)
        sae.b_gate.copy_(b_gate)
        sae.b_mag.copy_(b_mag)
        sae.r_mag.copy_(scale.log())
    assert torch.equal(sae.r_mag.exp(), scale)
    sae.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x = torch.arange(-12.0, 13.0)[:, None] / 2
    gate = x - 1 + b_gate
    magnitude = (x - 1) * scale + b_mag
    for edge in (
        gate == 0,
        magnitude == 0,
        (gate > 0) & (magnitude < 0),
        (gate < 0) & (magnitude > 0),
    ):
        assert edge.any()
    assert torch.equal(ours.encode(x), sae.encode(x).detach())
    assert ours.can_edit_live


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands for the Hugging Face hub and serves ``tmp_path/repo``."""

    def download(repo_id: str, filename: str, **_: Any) -> str:
        path = tmp_path / "repo" / filename
        if repo_id != "tiny/saes" or not path.exists():
            raise pretrained_sae_loaders.EntryNotFoundError(f"{repo_id}/{filename}")
        return str(path)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    return tmp_path / "repo"


@pytest.mark.parametrize("arguments", [("tiny/saes", "last"), ("tiny/saes:last",)], ids=" ".join)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_release_equals_its_directory(hub, architecture, arguments):
    make(CLASSES, architecture).save_model(hub / "last")
    release = load_sae(*arguments)
    assert release.name == "tiny/saes:last"
    assert release.content_hash == load_sae(hub / "last").content_hash


def test_release_with_its_norm_factor(hub, monkeypatch):
    make(CLASSES, "jumprelu", normalize_activations="expected_average_only_in").save_model(
        hub / "last"
    )
    monkeypatch.setattr(sae_lens_sae, "get_norm_scaling_factor", lambda release, sae_id: 0.37)
    theirs = sae_lens.SAE.from_pretrained("tiny/saes", "last", dtype="float64")
    assert theirs.cfg.normalize_activations == "none"
    assert_same(load_sae("tiny/saes:last"), theirs, tokens(300))


def test_release_without_its_norm_factor_is_refused(hub):
    """sae-lens only warns, and would hand out activations of another scale."""
    make(CLASSES, "standard", normalize_activations="expected_average_only_in").save_model(
        hub / "last"
    )
    with pytest.warns(UserWarning, match="norm_scaling_factor not found"):
        sae_lens.SAE.from_pretrained("tiny/saes", "last")
    with pytest.raises(ValueError, match="norm_scaling_factor: expected the factor"):
        load_sae("tiny/saes:last")


def test_release_of_a_transcoder_is_refused(hub):
    config = sae_lens.TranscoderConfig(
        d_in=D_MODEL,
        d_sae=D_SAE,
        d_out=D_MODEL,
        apply_b_dec_to_input=False,
        metadata=sae_lens_sae.SAEMetadata(hook_name="blocks.3.hook_resid_post"),
    )
    sae_lens.Transcoder(config).save_model(hub / "last")
    with pytest.raises(ValueError, match="a transcoder reads one site"):
        load_sae("tiny/saes:last")


@pytest.mark.parametrize(
    "release, sae_id",
    [("no-such-release", "x"), ("gemma-scope-2b-pt-res", "no-such-id"), ("tiny/saes", "absent")],
)
def test_unknown_release_is_one_sentence(hub, release, sae_id):
    with pytest.raises(ValueError, match=f"SAE {release}:{sae_id}: sae-lens could not load") as e:
        load_sae(release, sae_id)
    assert "\n" not in str(e.value)


def test_older_format_reads_after_the_conversion_the_error_names(tmp_path):
    make(CLASSES, "standard").save_model(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "cfg.json").read_text())
    del config["metadata"]
    config |= {"hook_name": "blocks.3.hook_resid_pre", "activation_fn_str": "relu", "lr": 1e-4}
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"SAE\.load_from_disk\(old\)\.save_model\(new\)"):
        load_sae(tmp_path / "old")
    sae_lens.SAE.load_from_disk(tmp_path / "old").save_model(tmp_path / "new")
    ours = load_sae(tmp_path / "new")
    assert ours.layer == 2
    assert_same(ours, load_float64(tmp_path / "new"), tokens(300))
