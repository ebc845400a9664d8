"""Registration with torch.library: every op of this package, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saif_kernels._steer_cpu import steer_cpu_
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm_torch, add_steer_rms_norm_triton
from saif_kernels.bank import SteeringBank
from saif_kernels.encode.moments import encode_moments_torch, encode_moments_triton
from saif_kernels.encode.topk import encode_topk_torch, encode_topk_triton
from saif_kernels.encode.topk_rank import topk_rank_torch, topk_rank_triton
from saif_kernels.prepare_steps import prepare_steps_torch_, prepare_steps_triton_
from saif_kernels.steer import steer_triton_
from saif_kernels.tally_steps import tally_steps_torch_, tally_steps_triton_

# FRAGMENT: several modules of one process may define ops of this namespace.
LIBRARY = torch.library.Library("saif", "FRAGMENT")


def _define(
    schema: str,
    in_torch: Callable[..., Any],
    launcher: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Register an op: the launcher on GPUs, the one in torch's own ops on all other devices."""
    name = schema.partition("(")[0]

    def launch(first: Tensor, *args: Any, **options: Any) -> Any:
        # Triton launches on the current device, which may not be the tensors'.
        with torch.cuda.device_of(first):
            return launcher(first, *args, **options)

    LIBRARY.define(schema)
    LIBRARY.impl(name, in_torch, "CompositeExplicitAutograd")
    LIBRARY.impl(name, launch, "CUDA")
    torch.library.register_fake(f"saif::{name}", fake, lib=LIBRARY)


def _nothing(first: Tensor, *args: Tensor | None, **options: Any) -> None:
    """Stand in for an op that writes in place and returns nothing."""


def _add_steer_rms_norm_fake(hidden: Tensor, *args: object) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def _encode_topk_fake(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    values = x.new_empty(x.shape[0], k, dtype=torch.float32)
    return values, torch.empty_like(values, dtype=torch.int32)


def _encode_moments_fake(x: Tensor, without: Tensor | None, W_enc: Tensor, *args: object) -> Tensor:
    return x.new_empty(4 if without is None else 6, W_enc.shape[1], dtype=torch.float64)


def _topk_rank_fake(x: Tensor, W_enc: Tensor, b_enc: Tensor, latents: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], latents.shape[0], dtype=torch.int32)


# Flat tensors, since a schema knows no tuples; the order is that of SteeringBank's fields.
_TABLES = ", ".join(
    f"Tensor {name}"
    for name in (*SteeringBank._fields, "set_slot", "strength", "token_row", "token_scale")
)

_define(
    f"steer_(Tensor(a!) hidden, Tensor? residual, {_TABLES}, *, "
    "Tensor(b!)? dose=None, float? max_dose=None) -> ()",
    steer_cpu_,
    steer_triton_,
    _nothing,
)
_define(
    "add_steer_rms_norm(Tensor hidden, Tensor? residual, Tensor weight, float eps, bool gemma, "
    f"{_TABLES}) -> Tensor",
    add_steer_rms_norm_torch,
    add_steer_rms_norm_triton,
    _add_steer_rms_norm_fake,
)
_define(
    "prepare_steps_(Tensor(a!) token_row, Tensor(b!) token_scale, Tensor query_start_loc, "
    "Tensor request_row, Tensor positions, Tensor table, *, Tensor(c!)? token_fresh=None, "
    "Tensor? counts=None) -> ()",
    prepare_steps_torch_,
    prepare_steps_triton_,
    _nothing,
)
_define(
    "tally_steps_(Tensor token_row, Tensor token_fresh, Tensor(a!) dose, Tensor(b!) table, "
    "Tensor(c!) missed) -> ()",
    tally_steps_torch_,
    tally_steps_triton_,
    _nothing,
)
_define(
    "encode_topk(Tensor x, Tensor W_enc, Tensor b_enc, Tensor? threshold, int k) "
    "-> (Tensor values, Tensor indices)",
    encode_topk_torch,
    encode_topk_triton,
    _encode_topk_fake,
)
_define(
    "encode_moments(Tensor x, Tensor? without, Tensor W_enc, Tensor b_enc, Tensor? threshold, "
    "int? k) -> Tensor",
    encode_moments_torch,
    encode_moments_triton,
    _encode_moments_fake,
)
_define(
    "topk_rank(Tensor x, Tensor W_enc, Tensor b_enc, Tensor latents) -> Tensor",
    topk_rank_torch,
    topk_rank_triton,
    _topk_rank_fake,
)
