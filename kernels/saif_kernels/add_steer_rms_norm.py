"""The last layer's steering fused with the model's final RMSNorm: one read, one write."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels._steer_checks import check_batch, from_schema
from saif_kernels._steer_cpu import steer_cpu_
from saif_kernels._steer_dose import largest_norm, rounded, shortened, times
from saif_kernels._steer_token import (
    Sizes,
    as_pointers,
    part_channels,
    plus_residual,
    token_change,
    walk_blocks,
)
from saif_kernels._triton import jit, tl
from saif_kernels.bank import MAX_LATENTS, SteeringBank
from saif_kernels.request_rows import RequestRows


def add_steer_rms_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    bank: SteeringBank,
    rows: RequestRows,
    token_row: Tensor,
    token_scale: Tensor,
    *,
    gemma: bool = False,
) -> Tensor:
    """Steer, add the residual and normalise: for a model's last layer, whose sum no one else reads.

    Semantics: with hidden' as :func:`~saif_kernels.steer_` would leave it, and in fp32::

        s = hidden' + residual;  n = s / sqrt(mean(s**2) + eps)
        plain: cast(cast(n) * weight)    Gemma: cast(n * (1 + weight))

    These are the rounding points of vLLM's ``fused_add_rms_norm`` in its native form. In 16 bits
    its CUDA kernel also rounds the sum s. Nothing is written in place.

    Args:
        hidden, residual, bank, rows, token_row, token_scale: as for ``steer_``.
        weight: [d_model], of the norm, in hidden's dtype.
        eps: added to the mean square.
        gemma: multiply by 1 + weight.

    Returns:
        [T, d_model] in hidden's dtype, contiguous.

    Raises:
        ValueError: a shape or dtype does not fit.

    Examples:
        >>> normed = add_steer_rms_norm(
        ...     hidden, residual, norm.weight, 1e-6, bank, rows, token_row, token_scale
        ... )
    """
    check_batch(hidden, residual, bank, token_row, token_scale)
    fits = weight.shape == hidden.shape[1:] and weight.dtype == hidden.dtype
    if not fits or not weight.is_contiguous():
        raise ValueError(
            f"weight: expected [{hidden.shape[1]}] {hidden.dtype}, contiguous, "
            f"got {list(weight.shape)} {weight.dtype} with strides {list(weight.stride())}"
        )
    normed: Tensor = torch.ops.saif.add_steer_rms_norm(
        hidden,
        residual,
        weight,
        eps,
        gemma,
        *bank,
        rows.set_slot,
        rows.strength,
        token_row,
        token_scale,
    )
    return normed


def add_steer_rms_norm_torch(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    gemma: bool,
    *tables: Tensor,
) -> Tensor:
    """Specify :func:`add_steer_rms_norm`, over the op's flat ``tables``; also what runs on CPUs."""
    s = hidden.clone(memory_format=torch.contiguous_format)
    steer_cpu_(s, residual, *tables)
    s = s.to(torch.promote_types(hidden.dtype, torch.float32))
    if residual is not None:
        s = s + residual
    normed = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
    if gemma:
        return (normed * (1 + weight.to(s.dtype))).to(hidden.dtype)
    return normed.to(hidden.dtype) * weight


@jit
def _add_steer_rms_norm_kernel(
    x,  # StreamPointers, read only
    bank,  # SteeringBank
    tokens,  # TokenPointers
    p_weight,  # [D]
    p_normed,  # [T, D], written
    eps,
    GEMMA: tl.constexpr,
    SIZES: tl.constexpr,
):
    """Grid (token,). Steer the token, add its residual and normalise the sum."""
    i_t = tl.program_id(0).to(tl.int64)
    o_d, m_d = part_channels(0, SIZES)
    b_hidden = tl.load(x.hidden + i_t * x.hidden_stride + o_d, mask=m_d, other=0.0)
    b_sum = b_hidden.to(tl.float32)
    request_row = tl.load(tokens.request_row + i_t).to(tl.int64)
    scale = tl.load(tokens.scale + i_t)
    if (request_row >= 0) & (scale != 0):
        b_x = plus_residual(b_hidden, x, i_t, o_d, m_d).to(tl.float32)
        b_change, _ = token_change(
            b_x, bank, tokens, None, i_t, request_row, scale, o_d, m_d, SIZES
        )
        change2, x2 = tl.sum(b_change * b_change, axis=0), tl.sum(b_x * b_x, axis=0)
        factor = shortened(change2, x2, None, SIZES.LARGEST)
        if factor >= 0:
            b_sum += times(b_change, factor)
            b_sum = rounded(b_sum, b_hidden.dtype).to(tl.float32)  # as where steer_ stores it
    if x.residual is not None:
        p_residual = x.residual + i_t * x.residual_stride + o_d
        b_sum += tl.load(p_residual, mask=m_d, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_normed = b_sum * tl.rsqrt(tl.sum(b_sum * b_sum, axis=0) / SIZES.D + eps)
    if GEMMA:
        b_normed *= 1.0 + b_weight
    else:
        b_normed = b_normed.to(b_hidden.dtype).to(tl.float32) * b_weight
    tl.store(p_normed + i_t * SIZES.D + o_d, b_normed.to(b_hidden.dtype), mask=m_d)


def add_steer_rms_norm_triton(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    gemma: bool,
    *tables: Tensor,
) -> Tensor:
    """Launch the kernel, for fp32, bf16 and fp16; arguments as of the reference."""
    bank, set_slot, strength, token_row, token_scale = from_schema(tables)
    n_tokens, d_model = hidden.shape
    normed = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    if n_tokens == 0:
        return normed
    x, tokens = as_pointers(hidden, residual, token_row, token_scale, set_slot, strength)
    blocks = walk_blocks(d_model, hidden.element_size())
    _add_steer_rms_norm_kernel[(n_tokens,)](
        x=x,
        bank=bank,
        tokens=tokens,
        p_weight=weight,
        p_normed=normed,
        eps=eps,
        GEMMA=gemma,
        SIZES=Sizes(
            D=d_model,
            M=set_slot.shape[1],
            MAX_LATENTS=MAX_LATENTS,
            LARGEST=largest_norm(hidden.dtype),
            N_PARTS=1,
            PART_D=d_model,
            BLOCK_D=blocks.block_d,
            BLOCK_K=blocks.block_k,
        ),
        num_warps=blocks.num_warps,
    )
    return normed
