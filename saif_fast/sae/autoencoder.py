"""Sparse autoencoders in canonical form, with weights in the model's residual units."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from saif_fast.records import SaeReference

__all__ = ["Calibration", "Normalization", "SparseAutoencoder"]

Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]

_TENSORS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
_TOKENS_PER_CHUNK = 1024  # bounds the [tokens, d_sae] buffers
_LAYER_NORM_EPS = 1e-5  # as in sae-lens; added to the standard deviation


class Calibration(NamedTuple):
    """The threshold that replaces a TopK SAE's rank, and how often the two disagree."""

    threshold: float
    disagreement: float  # (token, latent) pairs whose activity differs, per active one by rank
    latent_disagreement: Tensor  # [d_sae] fp32, share of tokens on which its activity differs
    n_tokens: int


class _Normalized(NamedTuple):
    """A normalized input: ``x = values * scale + shift``; scale and shift are [..., 1]."""

    values: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """An SAE with all folds done: ``pre = x @ W_enc + b_enc``, ``a = pre * (pre > threshold)``.

    One unit of ``a_i`` adds ``W_dec[i]`` to x. With ``k`` (TopK), ``a`` keeps the k largest ``pre``
    where they are positive. ``threshold`` is then 0 or calibrated, and only live edits read it.
    With a ``normalization`` the formula holds for each token's normalized x. Such an SAE can encode
    and decode, but no edit in residual units follows from it.

    Activations equal those of sae-lens after its own folds, for every architecture.

    Raises:
        ValueError: a tensor has the wrong shape or dtype or is not finite, a threshold is negative,
            or k is out of range.
    """

    W_enc: Tensor  # [d_model, d_sae] fp32
    b_enc: Tensor  # [d_sae] fp32
    threshold: Tensor  # [d_sae] fp32, >= 0
    W_dec: Tensor  # [d_sae, d_model] fp32
    b_dec: Tensor  # [d_model] fp32; only decode reads it
    layer: int  # the block whose output it reads and writes; -1 = the embedding
    hook_name: str
    architecture: str
    name: str  # release:id or the directory's name
    model_name: str | None = None
    k: int | None = None
    normalization: Normalization = "none"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise ValueError(f"W_enc: expected [d_model, d_sae], got {list(self.W_enc.shape)}")
        shapes = {
            "W_enc": (self.d_model, self.d_sae),
            "b_enc": (self.d_sae,),
            "threshold": (self.d_sae,),
            "W_dec": (self.d_sae, self.d_model),
            "b_dec": (self.d_model,),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name}: expected {list(shape)} float32, "
                    f"got {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{name}: expected finite values, got nan or infinity")
        if (self.threshold < 0).any():
            raise ValueError(f"threshold: expected >= 0, got {self.threshold.min().item():g}")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k: expected 1 to {self.d_sae}, got {self.k}")
        if self.layer < -1:
            raise ValueError(f"layer: expected -1 (the embedding) or more, got {self.layer}")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @cached_property
    def content_hash(self) -> str:
        """sha256 over all that the SAE computes with: canonical tensors, site, k, normalization.

        A TopK SAE's threshold is left out, because calibration does not make it another SAE.
        """
        essentials = (self.architecture, self.hook_name, self.layer, self.k, self.normalization)
        digest = hashlib.sha256(msgspec.json.encode(essentials))
        for name in _TENSORS:
            if name == "threshold" and self.k is not None:
                continue
            tensor = getattr(self, name)
            digest.update(msgspec.json.encode((name, tuple(tensor.shape))))
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()

    def reference(self) -> SaeReference:
        """Return the record of this SAE for a latent set."""
        return SaeReference(
            name=self.name,
            content_hash=self.content_hash,
            architecture=self.architecture,
            d_sae=self.d_sae,
            hook_name=self.hook_name,
            model_name=self.model_name,
        )

    def to(self, device: str | torch.device) -> SparseAutoencoder:
        """Return the same SAE with its tensors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return dataclasses.replace(self, **moved)

    @property
    def can_edit_live(self) -> bool:
        """Whether :meth:`require_live_edits` passes."""
        return self._edit_obstacle is None and self._live_obstacle is None

    def require_edits(self) -> None:
        """Raise ValueError unless one unit of activation is one ``W_dec`` row at ``layer``."""
        if self._edit_obstacle is not None:
            raise ValueError(f"SAE {self.name}: {self._edit_obstacle}")

    def require_live_edits(self) -> None:
        """Raise ValueError unless edits may also read the activation (clamp, scale, gates)."""
        self.require_edits()
        if self._live_obstacle is not None:
            raise ValueError(f"SAE {self.name}: {self._live_obstacle}")

    @property
    def _edit_obstacle(self) -> str | None:
        if self.normalization != "none":
            return (
                f"normalize_activations={self.normalization!r} scales every token by itself, so no "
                "edit in residual units exists; it can only identify"
            )
        if self.layer < 0:
            return f"{self.hook_name} is the output of no block, so it can only identify"
        return None

    @property
    def _live_obstacle(self) -> str | None:
        if self.k is not None and self.calibration is None:
            return (
                "a TopK latent is active by its rank among all latents; live edits need a "
                "threshold from with_calibrated_threshold(activations)"
            )
        return None

    def encode(self, x: Tensor) -> Tensor:
        """Return activations [..., d_sae] fp32 of ``x`` [..., d_model], of any float dtype.

        TopK is exact, by rank among all pre-activations, whether calibrated or not.
        """
        pre = self._pre(x)
        if self.k is None:
            return torch.where(pre > self.threshold, pre, 0.0)
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())

    def normalized(self, x: Tensor) -> Tensor:
        """Return residual vectors ``x`` [..., d_model] as the formula above reads them, in fp32."""
        self._check(x)
        return self._normalize(x).values

    def decode(self, a: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the reconstruction [..., d_model] fp32 of activations ``a`` [..., d_sae].

        Args:
            a: activations.
            x: the encoded vectors [..., d_model]. An SAE with a normalization needs their
                statistics to undo it; others ignore them.

        Raises:
            ValueError: the SAE normalizes each token, and ``x`` is not given.
        """
        if a.shape[-1:] != (self.d_sae,):
            raise ValueError(f"a: expected [..., {self.d_sae}], got {list(a.shape)}")
        x_hat = a.float() @ self.W_dec + self.b_dec
        if self.normalization == "none":
            return x_hat
        if x is None:
            raise ValueError(
                f"x: expected the encoded activations, since normalize_activations="
                f"{self.normalization!r} is undone with their statistics, got None"
            )
        normalized = self._normalize(x)
        return x_hat * normalized.scale + normalized.shift

    def explained_variance(self, x: Tensor) -> float:
        """Return 1 - squared error / variance of the reconstruction of tokens ``x`` [..., d_model].

        Much lower than on the SAE's card means that the SAE belongs to another model. Report it
        next to any result.
        """
        self._check(x)
        mean = x.reshape(-1, self.d_model).mean(dim=0, dtype=torch.float64)
        error = torch.zeros((), dtype=torch.float64, device=x.device)
        total = torch.zeros_like(error)
        for chunk in self._chunks(x):
            error += (chunk - self.decode(self.encode(chunk), chunk)).double().square().sum()
            total += (chunk.double() - mean).square().sum()
        if total == 0:
            raise ValueError("x: expected at least two different tokens, got no variance")
        return 1.0 - (error / total).item()

    def l0(self, x: Tensor) -> float:
        """Return the mean number of active latents per token of ``x`` [..., d_model]."""
        active = n_tokens = 0
        for chunk in self._chunks(x):
            active += int((self.encode(chunk) > 0).sum())
            n_tokens += chunk.shape[0]
        return active / n_tokens

    def with_calibrated_threshold(self, x: Tensor) -> SparseAutoencoder:
        """Return this TopK SAE with one threshold for live edits, calibrated on tokens ``x``.

        ``x`` is [..., d_model]; take a few thousand tokens like those to be steered. The threshold
        is the median over tokens of the midpoint between the k-th and the (k + 1)-th largest
        pre-activation, at least 0. ``calibration`` says how often it disagrees with the rank.
        ``encode`` stays exact.

        Raises:
            ValueError: the SAE is not TopK, or x has no tokens.
        """
        if self.k is None:
            raise ValueError(f"k: expected a TopK SAE, got architecture {self.architecture!r}")
        threshold = self._median_boundary(x, self.k)
        differs = torch.zeros(self.d_sae, dtype=torch.int64, device=x.device)
        by_rank = n_tokens = 0
        for chunk in self._chunks(x):
            active = self.encode(chunk) > 0
            differs += (active != (self._pre(chunk) > threshold)).sum(dim=0)
            by_rank += int(active.sum())
            n_tokens += chunk.shape[0]
        calibration = Calibration(
            threshold=threshold,
            disagreement=int(differs.sum()) / max(by_rank, 1),
            latent_disagreement=(differs / n_tokens).float().cpu(),
            n_tokens=n_tokens,
        )
        return dataclasses.replace(
            self,
            threshold=torch.full_like(self.threshold, threshold),
            calibration=calibration,
        )

    def _median_boundary(self, x: Tensor, k: int) -> float:
        if k == self.d_sae:
            return 0.0  # no latent is ever ranked out
        boundaries = [
            self._pre(chunk).topk(k + 1, dim=-1).values[:, -2:].mean(dim=-1)
            for chunk in self._chunks(x)
        ]
        return max(torch.cat(boundaries).median().item(), 0.0)

    def _chunks(self, x: Tensor) -> Iterator[Tensor]:
        """Yield ``x`` as [tokens, d_model], a bounded number of tokens at a time."""
        self._check(x)
        if x.numel() == 0:
            raise ValueError("x: expected at least one token, got none")
        tokens = x.reshape(-1, self.d_model)
        for start in range(0, tokens.shape[0], _TOKENS_PER_CHUNK):
            yield tokens[start : start + _TOKENS_PER_CHUNK]

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.d_model,) or not x.is_floating_point():
            raise ValueError(
                f"x: expected [..., {self.d_model}] of floats, got {list(x.shape)} {x.dtype}"
            )

    def _pre(self, x: Tensor) -> Tensor:
        return self.normalized(x) @ self.W_enc + self.b_enc

    def _normalize(self, x: Tensor) -> _Normalized:
        """Normalize the input in fp32 as sae-lens does at run time."""
        x = x.float()
        zero = torch.zeros((), device=x.device)
        match self.normalization:
            case "none":
                return _Normalized(x, torch.ones_like(zero), zero)
            case "constant_norm_rescale":
                scale = x.norm(dim=-1, keepdim=True) / self.d_model**0.5
                return _Normalized(x / scale, scale, zero)
            case "layer_norm":
                mean = x.mean(dim=-1, keepdim=True)
                std = (x - mean).std(dim=-1, keepdim=True)
                # sae-lens leaves the epsilon out when it undoes the division.
                return _Normalized((x - mean) / (std + _LAYER_NORM_EPS), std, mean)
