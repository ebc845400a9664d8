"""Registration with torch.library: every op of this package, once."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels.add_steer_rms_norm import add_steer_rms_norm_torch, add_steer_rms_norm_triton
from saif_kernels.bank import SteeringBank
from saif_kernels.steer import steer_torch_, steer_triton_
from saif_kernels.steps import prepare_steps_torch, prepare_steps_triton

# FRAGMENT: several modules of one process may define ops of this namespace.
LIBRARY = torch.library.Library("saif", "FRAGMENT")


def _nothing(hidden: Tensor, *args: Tensor | None) -> None:
    """Fake of an op that writes in place and returns nothing."""


# Flat tensors, since a schema knows no tuples; the order is that of SteeringBank's fields.
_TABLES = ", ".join(
    f"Tensor {name}"
    for name in (*SteeringBank._fields, "set_slot", "strength", "token_row", "token_scale")
)

LIBRARY.define(f"steer_(Tensor(a!) hidden, Tensor? residual, {_TABLES}) -> ()")
LIBRARY.impl("steer_", steer_torch_, "CompositeExplicitAutograd")
LIBRARY.impl("steer_", steer_triton_, "CUDA")
torch.library.register_fake("saif::steer_", _nothing, lib=LIBRARY)

LIBRARY.define(
    f"add_steer_rms_norm(Tensor hidden, Tensor? residual, {_TABLES}, Tensor weight, float eps, "
    "bool gemma) -> Tensor"
)
LIBRARY.impl("add_steer_rms_norm", add_steer_rms_norm_torch, "CompositeExplicitAutograd")
LIBRARY.impl("add_steer_rms_norm", add_steer_rms_norm_triton, "CUDA")


@torch.library.register_fake("saif::add_steer_rms_norm", lib=LIBRARY)
def _add_steer_rms_norm_fake(hidden: Tensor, *args: object) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


LIBRARY.define(
    "prepare_steps_(Tensor(a!) token_row, Tensor(b!) token_scale, Tensor query_start_loc, "
    "Tensor request_row, Tensor positions, Tensor table) -> ()"
)
LIBRARY.impl("prepare_steps_", prepare_steps_torch, "CompositeExplicitAutograd")
LIBRARY.impl("prepare_steps_", prepare_steps_triton, "CUDA")
torch.library.register_fake("saif::prepare_steps_", _nothing, lib=LIBRARY)
