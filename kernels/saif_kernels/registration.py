"""Registration with torch.library: every op of this package, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saif_kernels.add_steer_rms_norm import add_steer_rms_norm_torch, add_steer_rms_norm_triton
from saif_kernels.bank import SteeringBank
from saif_kernels.encode_moments import encode_moments_torch, encode_moments_triton
from saif_kernels.encode_topk import encode_topk_torch, encode_topk_triton
from saif_kernels.steer import steer_torch_, steer_triton_
from saif_kernels.steps import prepare_steps_torch, prepare_steps_triton
from saif_kernels.tally import tally_steps_torch, tally_steps_triton
from saif_kernels.topk_rank import topk_rank_torch, topk_rank_triton

# FRAGMENT: several modules of one process may define ops of this namespace.
LIBRARY = torch.library.Library("saif", "FRAGMENT")


def _on_gpus(name: str, launcher: Callable[..., Any]) -> None:
    """Register a launcher. Triton launches on the current device, which may not be the tensors'."""

    def launch(first: Tensor, *args: Any, **options: Any) -> Any:
        with torch.cuda.device_of(first):
            return launcher(first, *args, **options)

    LIBRARY.impl(name, launch, "CUDA")


def _nothing(first: Tensor, *args: Tensor | None, **options: Any) -> None:
    """Fake of an op that writes in place and returns nothing."""


# Flat tensors, since a schema knows no tuples; the order is that of SteeringBank's fields.
_TABLES = ", ".join(
    f"Tensor {name}"
    for name in (*SteeringBank._fields, "set_slot", "strength", "token_row", "token_scale")
)

LIBRARY.define(
    f"steer_(Tensor(a!) hidden, Tensor? residual, {_TABLES}, *, "
    "Tensor(b!)? dose=None, float? max_dose=None) -> ()"
)
LIBRARY.impl("steer_", steer_torch_, "CompositeExplicitAutograd")
_on_gpus("steer_", steer_triton_)
torch.library.register_fake("saif::steer_", _nothing, lib=LIBRARY)

LIBRARY.define(
    "add_steer_rms_norm(Tensor hidden, Tensor? residual, Tensor weight, float eps, bool gemma, "
    f"{_TABLES}) -> Tensor"
)
LIBRARY.impl("add_steer_rms_norm", add_steer_rms_norm_torch, "CompositeExplicitAutograd")
_on_gpus("add_steer_rms_norm", add_steer_rms_norm_triton)


@torch.library.register_fake("saif::add_steer_rms_norm", lib=LIBRARY)
def _add_steer_rms_norm_fake(hidden: Tensor, *args: object) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


LIBRARY.define(
    "prepare_steps_(Tensor(a!) token_row, Tensor(b!) token_scale, Tensor query_start_loc, "
    "Tensor request_row, Tensor positions, Tensor table, *, Tensor(c!)? token_fresh=None, "
    "Tensor? counts=None) -> ()"
)
LIBRARY.impl("prepare_steps_", prepare_steps_torch, "CompositeExplicitAutograd")
_on_gpus("prepare_steps_", prepare_steps_triton)
torch.library.register_fake("saif::prepare_steps_", _nothing, lib=LIBRARY)

LIBRARY.define(
    "tally_steps_(Tensor token_row, Tensor token_fresh, Tensor(a!) dose, Tensor(b!) table, "
    "Tensor(c!) missed) -> ()"
)
LIBRARY.impl("tally_steps_", tally_steps_torch, "CompositeExplicitAutograd")
_on_gpus("tally_steps_", tally_steps_triton)
torch.library.register_fake("saif::tally_steps_", _nothing, lib=LIBRARY)

LIBRARY.define(
    "encode_topk(Tensor x, Tensor W_enc, Tensor b_enc, Tensor? threshold, int k) "
    "-> (Tensor values, Tensor indices)"
)
LIBRARY.impl("encode_topk", encode_topk_torch, "CompositeExplicitAutograd")
_on_gpus("encode_topk", encode_topk_triton)


@torch.library.register_fake("saif::encode_topk", lib=LIBRARY)
def _encode_topk_fake(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    values = x.new_empty(x.shape[0], k, dtype=torch.float32)
    return values, torch.empty_like(values, dtype=torch.int32)


LIBRARY.define(
    "encode_moments(Tensor x, Tensor? without, Tensor W_enc, Tensor b_enc, Tensor? threshold, "
    "int? k) -> Tensor"
)
LIBRARY.impl("encode_moments", encode_moments_torch, "CompositeExplicitAutograd")
_on_gpus("encode_moments", encode_moments_triton)


@torch.library.register_fake("saif::encode_moments", lib=LIBRARY)
def _encode_moments_fake(x: Tensor, without: Tensor | None, W_enc: Tensor, *args: object) -> Tensor:
    return x.new_empty(4 if without is None else 6, W_enc.shape[1], dtype=torch.float64)


LIBRARY.define("topk_rank(Tensor x, Tensor W_enc, Tensor b_enc, Tensor latents) -> Tensor")
LIBRARY.impl("topk_rank", topk_rank_torch, "CompositeExplicitAutograd")
_on_gpus("topk_rank", topk_rank_triton)


@torch.library.register_fake("saif::topk_rank", lib=LIBRARY)
def _topk_rank_fake(x: Tensor, W_enc: Tensor, b_enc: Tensor, latents: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], latents.shape[0], dtype=torch.int32)
