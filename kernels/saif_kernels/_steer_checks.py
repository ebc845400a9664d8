"""Argument checks of the steering ops, and the flat tables that their schemas list."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._steer_dose import DOSE_PARTS
from saif_kernels.bank import SteeringBank

ON_GPUS = (torch.float32, torch.bfloat16, torch.float16)


def check_batch(
    hidden: Tensor,
    residual: Tensor | None,
    bank: SteeringBank,
    token_row: Tensor,
    token_scale: Tensor,
) -> None:
    """Raise ValueError unless the shapes, strides and dtypes of a batch fit."""
    if hidden.ndim != 2 or hidden.shape[1] != bank.W_enc.shape[1]:
        raise ValueError(
            f"hidden: expected [tokens, {bank.W_enc.shape[1]}], got {list(hidden.shape)}"
        )
    if residual is not None and (residual.shape != hidden.shape or residual.dtype != hidden.dtype):
        raise ValueError(
            f"residual: expected {list(hidden.shape)} {hidden.dtype}, "
            f"got {list(residual.shape)} {residual.dtype}"
        )
    if hidden.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError("hidden and residual: expected a token's channels next to one another")
    dtypes = ON_GPUS if hidden.is_cuda else (*ON_GPUS, torch.float64)
    if hidden.dtype not in dtypes or hidden.dtype != bank.W_enc.dtype:
        raise ValueError(
            f"hidden: expected the bank's dtype, one of {dtypes}, "
            f"got {hidden.dtype} and a bank of {bank.W_enc.dtype}"
        )
    for name, table, dtype in (
        ("token_row", token_row, torch.int32),
        ("token_scale", token_scale, torch.float32),
    ):
        fits = table.ndim == 1 and table.dtype == dtype and table.is_contiguous()
        if not fits or table.shape[0] < hidden.shape[0]:
            raise ValueError(
                f"{name}: expected at least [{hidden.shape[0]}] {dtype}, contiguous, "
                f"got {list(table.shape)} {table.dtype} with strides {list(table.stride())}"
            )


def check_dose(dose: Tensor, n_tokens: int) -> None:
    """Raise ValueError unless ``dose`` fits a batch of ``n_tokens``."""
    fits = dose.shape[1:] == (DOSE_PARTS, 2) and dose.dtype == torch.float32
    if not fits or dose.shape[0] < n_tokens or not dose.is_contiguous():
        raise ValueError(
            f"dose: expected at least [{n_tokens}, {DOSE_PARTS}, 2] {torch.float32}, contiguous, "
            f"got {list(dose.shape)} {dose.dtype} with strides {list(dose.stride())}"
        )


def from_schema(tables: tuple[Tensor, ...]) -> tuple[SteeringBank, Tensor, Tensor, Tensor, Tensor]:
    """Return bank, set_slot, strength, token_row and token_scale from a schema's flat list."""
    *bank, set_slot, strength, token_row, token_scale = tables
    return SteeringBank(*bank), set_slot, strength, token_row, token_scale
