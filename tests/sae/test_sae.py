from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from saif_fast.sae import SparseAutoencoder, load_sae

D_MODEL, D_SAE = 6, 10


@pytest.fixture
def sae(write_sae) -> SparseAutoencoder:
    return load_sae(write_sae("jumprelu", metadata={"model_name": "tiny"}))


@pytest.fixture
def topk(write_sae) -> SparseAutoencoder:
    return load_sae(write_sae("topk"))


def test_a_unit_of_activation_adds_a_decoder_row(sae):
    a = torch.zeros(D_SAE)
    a[4] = 1.0
    torch.testing.assert_close(sae.decode(a) - sae.decode(torch.zeros(D_SAE)), sae.W_dec[4])


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_encoder_rows_are_the_encoder(write_sae, x, architecture):
    sae = load_sae(write_sae(architecture))
    columns = []
    for index in range(D_SAE):
        row, bias, threshold = sae.W_enc[:, index], sae.b_enc[index], sae.threshold[index]
        pre = x @ row + bias
        columns.append(pre * (pre > threshold))
    torch.testing.assert_close(torch.stack(columns, dim=1), sae.encode(x))


def test_topk_keeps_the_k_largest_that_are_positive(topk):
    x = torch.randn(500, D_MODEL) * 0.5
    a, pre = topk.encode(x), x @ topk.W_enc + topk.b_enc
    for row in range(500):
        kept = {i for i in pre[row].argsort(descending=True)[:3].tolist() if pre[row, i] > 0}
        assert set(a[row].nonzero().flatten().tolist()) == kept
    assert ((a > 0).sum(dim=1) < 3).any(), "no token has fewer than k positive pre-activations"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_input_dtype_is_widened_to_float32(sae, x, dtype):
    assert torch.equal(sae.encode(x.to(dtype)), sae.encode(x.to(dtype).float()))


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 5), torch.zeros(()), torch.zeros(3, D_MODEL, dtype=torch.long)], ids=str
)
def test_wrong_input_is_refused(sae, bad):
    with pytest.raises(ValueError, match=r"x: expected \[\.\.\., 6\] of floats"):
        sae.encode(bad)


def test_wrong_activations_are_refused(sae):
    with pytest.raises(ValueError, match=r"a: expected \[\.\.\., 10\], got \[2, 6\]"):
        sae.decode(torch.zeros(2, D_MODEL))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"W_enc": torch.zeros(D_MODEL)}, "W_enc: expected"),
        ({"W_dec": torch.zeros(D_MODEL, D_SAE)}, "W_dec: expected"),
        ({"b_enc": torch.zeros(D_SAE, dtype=torch.float64)}, "b_enc: expected"),
        ({"b_dec": torch.full((D_MODEL,), torch.nan)}, "b_dec: expected finite"),
        ({"threshold": torch.full((D_SAE,), -1.0)}, "threshold: expected >= 0, got -1"),
        ({"k": 0}, "k: expected 1 to 10, got 0"),
        ({"layer": -2}, "layer: expected"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constructor_checks_every_field(sae, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sae, **changes)


def test_live_edits_are_possible_by_default(sae):
    assert sae.can_edit_live
    sae.require_edits()
    sae.require_live_edits()


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_token_dependent_normalization_only_identifies(write_sae, x, normalization):
    sae = load_sae(write_sae("jumprelu", normalize_activations=normalization))
    assert not sae.can_edit_live
    for refuse in (sae.require_edits, sae.require_live_edits):
        with pytest.raises(ValueError, match=f"{normalization}.*only identify"):
            refuse()
    with pytest.raises(ValueError, match="x: expected the encoded activations"):
        sae.decode(sae.encode(x))


def test_embedding_only_identifies(write_sae, x):
    sae = load_sae(write_sae(metadata={"hook_name": "blocks.0.hook_resid_pre"}))
    assert sae.layer == -1 and sae.encode(x).shape == (64, D_SAE)
    with pytest.raises(ValueError, match="output of no block"):
        sae.require_live_edits()


def test_uncalibrated_topk_takes_constant_edits_only(topk):
    topk.require_edits()
    assert not topk.can_edit_live
    with pytest.raises(ValueError, match="with_calibrated_threshold"):
        topk.require_live_edits()


def test_calibrated_topk_takes_live_edits_and_encodes_as_before(topk, x):
    calibrated = topk.with_calibrated_threshold(x)
    calibrated.require_live_edits()
    assert torch.equal(calibrated.encode(x), topk.encode(x))
    assert calibrated.content_hash == topk.content_hash
    assert not topk.can_edit_live


def disagreements(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    pre = x @ sae.W_enc + sae.b_enc
    return (sae.encode(x) > 0) != (pre > sae.threshold)


def test_calibration_counts_its_disagreements(topk):
    x = torch.randn(3000, D_MODEL, generator=torch.Generator().manual_seed(3))
    calibrated = topk.with_calibrated_threshold(x)
    calibration = calibrated.calibration
    assert calibration is not None
    wrong = disagreements(calibrated, x)
    assert wrong.any()
    assert calibration.n_tokens == 3000
    assert calibration.disagreement == wrong.sum().item() / (topk.encode(x) > 0).sum().item()
    torch.testing.assert_close(calibration.latent_disagreement, wrong.float().mean(dim=0))
    assert (calibrated.threshold == calibration.threshold).all()


def test_calibrated_threshold_is_near_the_best(topk):
    x = torch.randn(3000, D_MODEL, generator=torch.Generator().manual_seed(3))
    calibrated = topk.with_calibrated_threshold(x)
    pre, active = x @ topk.W_enc + topk.b_enc, topk.encode(x) > 0
    best = min(int(((pre > t) != active).sum()) for t in torch.linspace(0, 5, 201))
    assert disagreements(calibrated, x).sum() < 1.1 * best


def test_calibration_of_separable_activations_is_exact():
    """Three latents far above all others on every token: one threshold is the rank."""
    b_enc = torch.tensor([10.0, 9.0, 8.0] + [0.0] * 7)
    sae = SparseAutoencoder(
        W_enc=torch.eye(D_MODEL, D_SAE) * 0.1,
        b_enc=b_enc,
        threshold=torch.zeros(D_SAE),
        W_dec=torch.zeros(D_SAE, D_MODEL),
        b_dec=torch.zeros(D_MODEL),
        layer=0,
        hook_name="blocks.0.hook_resid_post",
        architecture="topk",
        name="made",
        k=3,
    )
    calibration = sae.with_calibrated_threshold(torch.randn(50, D_MODEL)).calibration
    assert calibration is not None
    assert calibration.disagreement == 0 and 3 < calibration.threshold < 5


def test_calibrated_threshold_is_never_negative(topk, x):
    """Where hardly anything is positive, TopK keeps fewer than k, and so must the threshold."""
    negative = dataclasses.replace(topk, b_enc=topk.b_enc - 20.0)
    calibrated = negative.with_calibrated_threshold(x)
    assert (calibrated.threshold == 0).all() and not disagreements(calibrated, x).any()


def test_topk_that_keeps_all_is_relu(write_sae, x):
    sae = load_sae(write_sae("topk", k=D_SAE)).with_calibrated_threshold(x)
    assert (sae.threshold == 0).all() and not disagreements(sae, x).any()


def test_calibration_needs_topk_and_tokens(sae, topk):
    with pytest.raises(ValueError, match="k: expected a TopK SAE, got architecture 'jumprelu'"):
        sae.with_calibrated_threshold(torch.zeros(3, D_MODEL))
    with pytest.raises(ValueError, match="x: expected at least one token"):
        topk.with_calibrated_threshold(torch.zeros(0, D_MODEL))


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
def test_explained_variance_and_l0_over_many_tokens(write_sae, normalization):
    sae = load_sae(write_sae("jumprelu", normalize_activations=normalization))
    x = torch.randn(5, 500, D_MODEL, generator=torch.Generator().manual_seed(2)) + 1.0
    a = sae.encode(x)
    error = (x - sae.decode(a, x)).square().sum()
    variance = (x - x.mean(dim=(0, 1))).square().sum()
    assert sae.explained_variance(x) == pytest.approx(1 - (error / variance).item(), rel=1e-4)
    assert sae.l0(x) == pytest.approx((a > 0).float().sum(dim=-1).mean().item())


def test_perfect_reconstruction_explains_everything(x):
    identity = torch.eye(D_MODEL)
    sae = SparseAutoencoder(
        W_enc=torch.cat([identity, -identity], dim=1),
        b_enc=torch.zeros(2 * D_MODEL),
        threshold=torch.zeros(2 * D_MODEL),
        W_dec=torch.cat([identity, -identity]),
        b_dec=torch.zeros(D_MODEL),
        layer=0,
        hook_name="blocks.0.hook_resid_post",
        architecture="standard",
        name="made",
    )
    assert sae.explained_variance(x) == pytest.approx(1.0, abs=1e-9)
    assert sae.l0(x) == D_MODEL


def test_explained_variance_of_one_token_is_refused(sae, x):
    with pytest.raises(ValueError, match="at least two different tokens"):
        sae.explained_variance(x[:1])


def test_content_hash_follows_the_content_only(sae):
    same = dataclasses.replace(sae, name="other", model_name=None, b_enc=sae.b_enc.clone())
    assert same.content_hash == sae.content_hash
    for field in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"):
        changed = getattr(sae, field).clone()
        changed.flatten()[-1] += 1
        assert dataclasses.replace(sae, **{field: changed}).content_hash != sae.content_hash
    others = {"layer": 4, "k": 3, "hook_name": "model.layers.3", "normalization": "layer_norm"}
    for field, value in others.items():
        assert dataclasses.replace(sae, **{field: value}).content_hash != sae.content_hash


def test_content_hash_does_not_depend_on_memory_layout(sae):
    transposed = dataclasses.replace(sae, W_enc=sae.W_enc.T.contiguous().T)
    assert transposed.content_hash == sae.content_hash


def test_reference_records_what_a_set_needs(sae):
    reference = sae.reference()
    assert reference.name == "sae"
    assert reference.content_hash == sae.content_hash
    assert (reference.architecture, reference.d_sae) == ("jumprelu", D_SAE)
    assert (reference.hook_name, reference.model_name) == ("blocks.3.hook_resid_post", "tiny")


def test_moved_to_a_device_it_is_the_same(sae, x):
    moved = sae.to("cpu")
    assert moved.content_hash == sae.content_hash
    assert torch.equal(moved.encode(x), sae.encode(x))
