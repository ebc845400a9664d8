"""Launches of every kernel, on meta tensors, which the ahead-of-time report compiles.

Only what a kernel is specialised on matters: dtypes, d_model, block sizes, and what is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from saif_kernels import DOSE_PARTS, RequestRows, SteeringBank, Tally
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm_triton
from saif_kernels.encode.moments import encode_moments_triton
from saif_kernels.encode.topk import encode_topk_triton
from saif_kernels.encode.topk_rank import topk_rank_triton
from saif_kernels.prepare_steps import prepare_steps_triton_
from saif_kernels.steer import steer_triton_
from saif_kernels.tally_steps import tally_steps_triton_

D_MODELS = (2304, 3584, 4096, 5120, 8192)
TYPICAL_D = 4096
D_SAE = 65536
N_REQUESTS, N_PAIRS = 256, 8  # saif_vllm's defaults
N_LAYERS = 32  # hooked ones

empty = partial(torch.empty, device="meta")


class Case(NamedTuple):
    """One launch."""

    op: str
    name: str
    d_model: int
    dtype: torch.dtype
    launch: Callable[[], object]

    @property
    def typical(self) -> bool:
        """Whether it is compiled for every target and by `make test`; the others are, for one."""
        return self.d_model == TYPICAL_D and self.dtype != torch.float16


def steer_arguments(
    d_model: int, dtype: torch.dtype, n_tokens: int, with_residual: bool = True
) -> tuple[torch.Tensor | None, ...]:
    """Return what ``torch.ops.saif.steer_`` takes."""
    bank = SteeringBank.allocate(d_model, 16, 256, dtype, "meta")
    rows = RequestRows.allocate(N_REQUESTS, N_PAIRS, "meta")
    return (
        empty(n_tokens, d_model, dtype=dtype),
        empty(n_tokens, d_model, dtype=dtype) if with_residual else None,
        *bank,
        rows.set_slot,
        rows.strength,
        empty(n_tokens, dtype=torch.int32),
        empty(n_tokens),
    )


def steer(d_model: int, dtype: torch.dtype, n_tokens: int, with_residual: bool = True) -> None:
    steer_triton_(*steer_arguments(d_model, dtype, n_tokens, with_residual))


def steer_with_dose(
    d_model: int, dtype: torch.dtype, n_tokens: int, max_dose: float | None = None
) -> None:
    dose = empty(n_tokens, DOSE_PARTS, 2)
    steer_triton_(*steer_arguments(d_model, dtype, n_tokens), dose=dose, max_dose=max_dose)


def add_steer_rms_norm(d_model: int, dtype: torch.dtype, gemma: bool) -> None:
    weight = empty(d_model, dtype=dtype)
    hidden, residual, *tables = steer_arguments(d_model, dtype, 64)
    add_steer_rms_norm_triton(hidden, residual, weight, 1e-6, gemma, *tables)


def prepare_steps(positions: torch.dtype, **fresh: torch.Tensor) -> None:
    prepare_steps_triton_(
        empty(8192, dtype=torch.int32),
        empty(8192),
        empty(N_REQUESTS + 1, dtype=torch.int32),
        empty(N_REQUESTS, dtype=torch.int32),
        empty(8192, dtype=positions),
        RequestRows.allocate(N_REQUESTS, N_PAIRS, "meta").table,
        **fresh,
    )


def prepare_fresh_steps() -> None:
    tally = Tally.allocate(N_LAYERS, 8192, N_REQUESTS, "meta")
    prepare_steps(torch.int64, token_fresh=tally.token_fresh, counts=tally.counts)


def tally_steps() -> None:
    tally = Tally.allocate(N_LAYERS, 8192, N_REQUESTS, "meta")
    token_row = empty(8192, dtype=torch.int32)
    tally_steps_triton_(token_row, tally.token_fresh, tally.dose, tally.table, tally.missed)


def encode_topk(d_model: int, dtype: torch.dtype, n_tokens: int) -> None:
    x, W_enc = empty(n_tokens, d_model, dtype=dtype), empty(d_model, D_SAE, dtype=dtype)
    encode_topk_triton(x, W_enc, empty(D_SAE), empty(D_SAE), 32)


def encode_moments(d_model: int, dtype: torch.dtype, n_tokens: int) -> None:
    x, W_enc = empty(n_tokens, d_model, dtype=dtype), empty(d_model, D_SAE, dtype=dtype)
    encode_moments_triton(x, x, W_enc, empty(D_SAE), empty(D_SAE), None)


def topk_rank(d_model: int, dtype: torch.dtype, n_latents: int) -> None:
    x, W_enc = empty(8192, d_model, dtype=dtype), empty(d_model, D_SAE, dtype=dtype)
    topk_rank_triton(x, W_enc, empty(D_SAE), empty(n_latents, dtype=torch.int64))


# Launches by (d_model, dtype), for each regime.
REGIMES: dict[str, dict[str, Callable[[int, torch.dtype], None]]] = {
    "steer_": {
        "few tokens": partial(steer, n_tokens=64),
        "many tokens": partial(steer, n_tokens=8192),
        "few tokens, dose": partial(steer_with_dose, n_tokens=64),
        "many tokens, dose": partial(steer_with_dose, n_tokens=8192),
    },
    "add_steer_rms_norm": {
        "plain": partial(add_steer_rms_norm, gemma=False),
        "Gemma": partial(add_steer_rms_norm, gemma=True),
    },
    "encode_topk": {
        "few tokens": partial(encode_topk, n_tokens=16),
        "many tokens": partial(encode_topk, n_tokens=8192),
    },
    "encode_moments": {
        "few tokens, two sides": partial(encode_moments, n_tokens=16),
        "many tokens, two sides": partial(encode_moments, n_tokens=8192),
    },
    "topk_rank": {
        "16 latents": partial(topk_rank, n_latents=16),
        "64 latents": partial(topk_rank, n_latents=64),
    },
}


def cases() -> Iterator[Case]:
    """Yield a typical d_model in every dtype; where d_model decides on blocks, others in bf16."""
    bf16 = torch.bfloat16
    for op, regimes in REGIMES.items():
        for name, launch in regimes.items():
            for dtype in (bf16, torch.float16, torch.float32):
                typical = partial(launch, TYPICAL_D, dtype)
                yield Case(op, name, TYPICAL_D, dtype, typical)
    for name in ("few tokens", "many tokens"):
        alone = partial(REGIMES["steer_"][name], TYPICAL_D, bf16, with_residual=False)
        yield Case("steer_", f"{name}, no residual", TYPICAL_D, bf16, alone)
        # This is what saif_vllm launches.
        capped = partial(REGIMES["steer_"][f"{name}, dose"], max_dose=64.0)
        for d_model in D_MODELS:
            yield Case("steer_", f"{name}, capped", d_model, bf16, partial(capped, d_model, bf16))
    for dtype in (torch.int32, torch.int64):
        positions = partial(prepare_steps, dtype)
        yield Case("prepare_steps_", "positions", TYPICAL_D, dtype, positions)
    yield Case("prepare_steps_", "fresh", TYPICAL_D, torch.int64, prepare_fresh_steps)
    yield Case("tally_steps_", f"{N_LAYERS} layers", TYPICAL_D, torch.float32, tally_steps)
