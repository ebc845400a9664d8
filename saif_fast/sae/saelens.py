"""SAEs of sae-lens 6, folded into the canonical form; what cannot be folded is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from saif_fast.sae.autoencoder import Normalization, SparseAutoencoder
from saif_fast.sae.hook_names import residual_layer
from saif_fast.sae.saelens_files import StoredSae, Whitening, read_directory, read_release

_SHARED = ("W_enc", "W_dec", "b_dec")
_TENSORS = {
    "standard": (*_SHARED, "b_enc"),
    "jumprelu": (*_SHARED, "b_enc", "threshold"),
    "topk": (*_SHARED, "b_enc"),
    "gated": (*_SHARED, "b_gate", "b_mag", "r_mag"),
}
_REFUSED = {
    "transcoder": "a transcoder reads one site and writes another",
    "skip_transcoder": "a transcoder reads one site and writes another",
    "jumprelu_transcoder": "a transcoder reads one site and writes another",
    "jumprelu_skip_transcoder": "a transcoder reads one site and writes another",
    "temporal": "a temporal SAE reads other tokens as well",
    "matching_pursuit": "matching pursuit encodes in many dependent steps",
    "abstopk": "an AbsTopK activation may be negative",
    "batchtopk": "a training checkpoint; save it with save_inference_model",
    "matryoshka_batchtopk": "a training checkpoint; save it with save_inference_model",
}


class _Metadata(msgspec.Struct):
    """The metadata fields that change what we do.

    sae-lens allows any others. They are descriptive only.
    """

    hook_name: str | None = None
    hf_hook_name: str | None = None
    hook_name_out: str | None = None
    hook_head_index: int | None = None
    model_name: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] | None = None


class _Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    architecture: str
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool
    normalize_activations: str
    metadata: _Metadata
    reshape_activations: str = "none"
    dtype: str = "float32"  # of sae-lens' arithmetic; ours is always fp32
    device: str = "cpu"


class _TopKConfig(_Config, forbid_unknown_fields=True, kw_only=True):
    k: int  # no default: sae-lens' own, 100, would be a guess
    rescale_acts_by_decoder_norm: bool = False


def load_directory(path: Path, norm_scaling_factor: float | None) -> SparseAutoencoder:
    """Load a directory that sae-lens 6 saved; arguments and errors are those of ``load_sae``."""
    return _canonical(read_directory(path), norm_scaling_factor)


def load_release(release: str, sae_id: str, norm_scaling_factor: float | None) -> SparseAutoencoder:
    """Load a release through sae-lens; arguments and errors are those of ``load_sae``."""
    return _canonical(read_release(release, sae_id), norm_scaling_factor)


def _canonical(stored: StoredSae, norm_scaling_factor: float | None) -> SparseAutoencoder:
    try:
        return _fold(stored, norm_scaling_factor)
    except ValueError as error:
        raise ValueError(f"SAE {stored.name}: {error}") from None


def _fold(stored: StoredSae, norm_scaling_factor: float | None) -> SparseAutoencoder:
    config = _parse_config(stored.config)
    layer, hook_name = _site(config)
    tensors = _parse_tensors(stored.tensors, config)
    factor = _choose_factor(norm_scaling_factor, stored.norm_scaling_factor, config)
    W_enc, W_dec, b_dec = (tensors[name] for name in _SHARED)
    W_enc, W_dec, b_dec = W_enc * factor, W_dec / factor, b_dec / factor
    if config.architecture == "gated":
        scale, threshold = _gate_as_threshold(tensors)
        W_enc, b_enc = W_enc * scale, tensors["b_mag"]
    else:
        b_enc = tensors["b_enc"]
        # sae-lens applies ReLU before the threshold, so a negative threshold has no effect.
        threshold = tensors.get("threshold", torch.zeros_like(b_enc)).clamp(min=0.0)
    if isinstance(config, _TopKConfig) and config.rescale_acts_by_decoder_norm:
        # After the dataset norm, before whitening, as in sae-lens: it sets the activations' unit.
        norm = W_dec.double().norm(dim=1).float()
        W_enc, b_enc = W_enc * norm, b_enc * norm
        # A latent whose decoder row is 0 never acts. Dividing by its norm would give nan.
        W_dec = W_dec / norm.where(norm > 0, 1.0)[:, None]
    if config.apply_b_dec_to_input:
        b_enc = b_enc - _project(b_dec, W_enc)

    normalization: Normalization = "none"
    match config.normalize_activations:
        case "none" | "expected_average_only_in":
            pass
        case "layer_norm" | "constant_norm_rescale" as normalization:
            pass
        case "covariance_whitening":
            # Whitening is one affine map, the same for every token, so it can be folded.
            mean, matrix, inverse = _check_whitening(stored.whitening, config.d_in)
            W_enc = (matrix @ W_enc.double()).float()
            b_enc = b_enc - _project(mean, W_enc)
            W_dec = (W_dec.double() @ inverse).float()
            b_dec = (b_dec.double() @ inverse + mean).float()
        case other:
            raise ValueError(
                f"normalize_activations: expected one that sae-lens 6 has, got {other!r}"
            )
    return SparseAutoencoder(
        W_enc=W_enc.contiguous(),
        b_enc=b_enc,
        threshold=threshold,
        W_dec=W_dec.contiguous(),
        b_dec=b_dec,
        layer=layer,
        hook_name=hook_name,
        architecture=config.architecture,
        name=stored.name,
        model_name=config.metadata.model_name,
        k=config.k if isinstance(config, _TopKConfig) else None,
        normalization=normalization,
    )


def _parse_config(raw: Mapping[str, Any]) -> _Config:
    if "metadata" not in raw:
        raise ValueError(
            "cfg.json: expected the format of sae-lens 6, got an older one; "
            "SAE.load_from_disk(old).save_model(new) of sae-lens converts it"
        )
    architecture = str(raw.get("architecture"))
    if architecture not in _TENSORS:
        reason = f": {_REFUSED[architecture]}" if architecture in _REFUSED else ""
        raise ValueError(
            f"architecture: expected one of {', '.join(_TENSORS)}, got {architecture!r}{reason}"
        )
    if "decoder_init_norm" in raw:
        raise ValueError(
            "cfg.json: expected an SAE for inference, got a training checkpoint; "
            "save it with save_inference_model"
        )
    kind = _TopKConfig if architecture == "topk" else _Config
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"cfg.json: {error}") from None


def _site(config: _Config) -> tuple[int, str]:
    """Return (layer, hook_name); refuse an SAE that does not read and write the residual stream."""
    metadata = config.metadata
    hook_name = metadata.hook_name or metadata.hf_hook_name
    if hook_name is None:
        raise ValueError("cfg.json: metadata.hook_name is missing, so the layer is unknown")
    if config.reshape_activations != "none":
        raise ValueError(
            f"reshape_activations: expected 'none', got {config.reshape_activations!r}"
        )
    if metadata.hook_head_index is not None:
        raise ValueError(
            "hook_head_index: expected none, since an attention head is not the residual stream, "
            f"got {metadata.hook_head_index}"
        )
    layer = residual_layer(hook_name)
    if metadata.hook_name_out not in (None, hook_name):
        raise ValueError(
            f"hook_name_out: expected {hook_name!r}, since an edit is written where it is read, "
            f"got {metadata.hook_name_out!r}"
        )
    if metadata.hf_hook_name is not None and residual_layer(metadata.hf_hook_name) != layer:
        raise ValueError(
            f"hf_hook_name: expected the site of {hook_name!r}, got {metadata.hf_hook_name!r}"
        )
    if (metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise ValueError(
            "model_from_pretrained_kwargs: expected the model's own residual stream, got "
            "center_writing_weights, which removes each token's mean from it"
        )
    return layer, hook_name


def _parse_tensors(stored: Mapping[str, Tensor], config: _Config) -> dict[str, Tensor]:
    """Return exactly the architecture's tensors, in fp32, with checked shapes."""
    tensors = {name: tensor.detach() for name, tensor in stored.items()}
    # Older versions write it. Without fine-tuning it is all ones.
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]
    expected = set(_TENSORS[config.architecture])
    if set(tensors) != expected:
        raise ValueError(
            f"tensors of architecture {config.architecture!r}: expected {sorted(expected)}, "
            f"got {sorted(tensors)}"
        )
    shapes = {
        "W_enc": (config.d_in, config.d_sae),
        "W_dec": (config.d_sae, config.d_in),
        "b_dec": (config.d_in,),
    }
    for name, tensor in tensors.items():
        shape = shapes.get(name, (config.d_sae,))
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ValueError(
                f"{name}: expected {list(shape)} of floats, got {list(tensor.shape)} {tensor.dtype}"
            )
        tensors[name] = tensor.float()
        if not tensors[name].isfinite().all():
            raise ValueError(f"{name}: expected finite values, got nan or infinity")
    return tensors


def _gate_as_threshold(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (scale, threshold) [d_sae] of a gated SAE's magnitude.

    They are exact, because both paths share W_enc.

    With s = exp(r_mag) > 0 and h = x @ W_enc: gate open <=> h > -b_gate
    <=> s * h + b_mag > b_mag - s * b_gate, and s * h + b_mag is the magnitude before its ReLU.
    b_dec shifts h alone, so the threshold does not depend on it.
    """
    scale = tensors["r_mag"].double().exp().float()
    threshold = tensors["b_mag"].double() - scale.double() * tensors["b_gate"].double()
    return scale, threshold.clamp(min=0.0).float()


def _project(vector: Tensor, W_enc: Tensor) -> Tensor:
    """Return ``vector @ W_enc`` [d_sae] fp32, summed row by row in float64.

    The fixed order gives the same bits, hence the same content hash, on every machine.
    """
    total = torch.zeros(W_enc.shape[1], dtype=torch.float64)
    for value, row in zip(vector.tolist(), W_enc, strict=True):
        total += row.double() * value
    return total.float()


def _choose_factor(given: float | None, stored: float | None, config: _Config) -> float:
    """Return the dataset norm's factor; 1 if the SAE has none."""
    if config.normalize_activations != "expected_average_only_in":
        if given is not None:
            raise ValueError(
                "norm_scaling_factor: expected none with normalize_activations="
                f"{config.normalize_activations!r}, got {given}"
            )
        return 1.0
    factor = stored if given is None else given
    if factor is None:
        raise ValueError(
            "norm_scaling_factor: expected the factor of normalize_activations="
            "'expected_average_only_in', which neither the files nor the release hold, got none; "
            "give norm_scaling_factor (saif identify --norm-scaling-factor)"
        )
    if not isinstance(factor, int | float) or not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"norm_scaling_factor: expected a positive number, got {factor!r}")
    if stored not in (None, factor):
        raise ValueError(
            f"norm_scaling_factor: expected {stored} as in activation_scaler.json, got {factor}"
        )
    return float(factor)


def _check_whitening(whitening: Whitening | None, d_model: int) -> Whitening:
    if whitening is None:
        raise ValueError(
            "normalize_activations: 'covariance_whitening' needs activation_whitening.safetensors "
            "beside the weights, which is missing"
        )
    expected = [[d_model], [d_model, d_model], [d_model, d_model]]
    got = [list(tensor.shape) for tensor in whitening]
    if got != expected:
        raise ValueError(f"activation_whitening.safetensors: expected {expected}, got {got}")
    return whitening
