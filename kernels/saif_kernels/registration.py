"""Registration with torch.library: every op of this package, once."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels.bank import SteeringBank
from saif_kernels.steer import steer_reference

# FRAGMENT: several modules of one process may define ops of this namespace.
LIBRARY = torch.library.Library("saif", "FRAGMENT")


def _nothing(hidden: Tensor, *args: Tensor | None) -> None:
    """Fake of an op that writes in place and returns nothing."""


# Flat tensors, since a schema knows no tuples; the order is that of SteeringBank's fields.
LIBRARY.define(
    "steer_(Tensor(a!) hidden, Tensor? residual, "
    + ", ".join(f"Tensor {name}" for name in SteeringBank._fields)
    + ", Tensor set_slot, Tensor strength, Tensor token_row, Tensor token_scale) -> ()"
)
LIBRARY.impl("steer_", steer_reference, "CompositeExplicitAutograd")
torch.library.register_fake("saif::steer_", _nothing, lib=LIBRARY)
