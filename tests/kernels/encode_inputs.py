"""Random SAEs and tokens for the full encodes, and their float64 truth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent))
from pairwise import pairwise

# Inputs are the same numbers for the truth, so that only the fp32 sums of up to 2304 products of
# standard deviation 1 / sqrt(2304) differ. Tensor cores cut such a sum off after every 8 or 16 of
# them instead of rounding it, which adds up to 3e-5.
EPSILON = 4e-5
KINDS = ("relu", "jumprelu", "topk")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# d_sae: no multiple of a block, and of more tiles than one; fewer where the interpreter is slow.
CASES = [
    {**case, "d_sae": 140 if case["n_tokens"] == 1023 else 300}
    for case in pairwise(
        {
            "dtype": DTYPES,
            "d_model": (64, 300, 2304),
            "n_tokens": (1, 7, 63, 1023),
            "kind": KINDS,
        }
    )
]


def case_id(value: Any) -> str:
    """A case as its values."""
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


class RandomSae(NamedTuple):
    """What a full encode reads of an SAE."""

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    k: int | None = None

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations [T, d_sae] fp64."""
        return x.double() @ self.W_enc.double() + self.b_enc.double()

    def encode(self, x: Tensor) -> Tensor:
        """Activations [T, d_sae] fp64; ties of a TopK SAE go to the lower index."""
        pre = self.pre(x)
        if self.k is None:
            return torch.where(pre > self.threshold, pre, 0.0)
        order = pre.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        return torch.zeros_like(pre).scatter(1, order, pre.gather(1, order).relu())

    def near(self, x: Tensor, k: int | None = None) -> Tensor:
        """[T]: whether rounding may decide which are active, or the order of the k largest."""
        pre = self.pre(x)
        boundary = self.threshold.double() if self.k is None else torch.zeros(())
        near = (pre - boundary.to(pre.device)).abs().amin(dim=1) < EPSILON
        if k is not None:
            largest = pre.sort(dim=1, descending=True).values[:, : k + 1]
            near |= largest.diff(dim=1).abs().amin(dim=1) < EPSILON
        return near


class EncodeCase(NamedTuple):
    """Tokens, what they are compared with, and an SAE."""

    x: Tensor
    without: Tensor
    sae: RandomSae


def random_encode(
    n_tokens: int = 20,
    d_model: int = 64,
    d_sae: int = 300,
    dtype: torch.dtype = torch.float32,
    kind: str = "jumprelu",
    device: str = "cpu",
    *,
    seed: int = 0,
) -> EncodeCase:
    """Pre-activations of standard deviation 1; kind: relu, jumprelu or topk (k = 12)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc = (normal(d_model, d_sae) / d_model**0.5).to(device, dtype)
    threshold = normal(d_sae).abs() if kind == "jumprelu" else torch.zeros(d_sae)
    sae = RandomSae(
        W_enc=W_enc,
        b_enc=(normal(d_sae) / 8).to(device),
        threshold=threshold.to(device),
        k=12 if kind == "topk" else None,
    )
    x, without = (normal(n_tokens, d_model).to(device, dtype) for _ in range(2))
    return EncodeCase(x, without, sae)


def whole_numbers(n_tokens: int, dtype: torch.dtype, kind: str, device: str) -> EncodeCase:
    """As :func:`random_encode`, of small whole numbers: no rounding, and many equal activations."""
    case = random_encode(n_tokens, dtype=dtype, kind=kind, device=device)
    sae = case.sae._replace(
        W_enc=(case.sae.W_enc * 8).round(),
        b_enc=(case.sae.b_enc * 8).round(),
        threshold=case.sae.threshold.round(),
    )
    return EncodeCase(case.x.round(), case.without.round(), sae)


def flat(case: EncodeCase) -> tuple[Tensor, Tensor, Tensor | None]:
    """(W_enc, b_enc, threshold) as the registered ops take them."""
    sae = case.sae
    return sae.W_enc, sae.b_enc, sae.threshold if sae.k is None else None


def topk_arguments(k: int = 5, **case: Any) -> tuple[object, ...]:
    """Arguments of ``torch.ops.saif.encode_topk``; the rest as :func:`random_encode`."""
    inputs = random_encode(**case)
    return inputs.x, *flat(inputs), k


def moments_arguments(**case: Any) -> tuple[object, ...]:
    """Arguments of ``torch.ops.saif.encode_moments``, with a comparison."""
    inputs = random_encode(**case)
    return inputs.x, inputs.without, *flat(inputs), inputs.sae.k


def rank_arguments(n_latents: int = 5, **case: Any) -> tuple[object, ...]:
    """Arguments of ``torch.ops.saif.topk_rank``: the first latents."""
    inputs = random_encode(**case)
    latents = torch.arange(n_latents, device=inputs.x.device)
    return inputs.x, inputs.sae.W_enc, inputs.sae.b_enc, latents


class Allocations(TorchDispatchMode):
    """Records the largest storage, in 4-byte elements, that an op within returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        return result
