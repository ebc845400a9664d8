"""What the full encodes share: the SAE they take, their tiles, and the one product of a tile.

What a product rounds to may depend on where in which tile a number lies. So pre-activations are
compared only where they come from the same product, or from the same tile of the same kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl, warp_size

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_K = 256  # the k largest of a tile's tokens live in registers, from which they spill above 128

# Enough programs to fill a GPU of 100 to 300 multiprocessors, most of which hold two at a time.
PROGRAMS = 256
# Tiles of one operand times parts of the other that run together and meet in the L2 cache.
TILES_TOGETHER = 16
PARTS_TOGETHER = 8

_CHUNK = 2**22  # pre-activations that a reference holds at a time


class Sae(Protocol):
    """What an encode reads of an SAE; ``saif_fast.SparseAutoencoder`` is one."""

    @property
    def W_enc(self) -> Tensor:
        """[d_model, d_sae] fp32, bf16 or fp16, rows contiguous."""

    @property
    def b_enc(self) -> Tensor:
        """[d_sae] fp32."""

    @property
    def threshold(self) -> Tensor:
        """[d_sae] fp32, >= 0; not read where ``k`` is given."""

    @property
    def k(self) -> int | None:
        """Of a TopK SAE: how many latents a token activates."""


class Blocks(NamedTuple):
    """One tile of the product: tokens, latents, channels a step; and how it is run."""

    T: int
    N: int
    D: int
    num_warps: int
    num_stages: int


def encode_blocks(n_tokens: int, dtype: torch.dtype, most_tokens: int = 128) -> Blocks:
    """The tile for ``n_tokens`` of ``dtype``, of at most ``most_tokens`` (64 or 128; half in fp32).

    A program that keeps much of each token besides the tile asks for 64: what it keeps would not
    fit in registers next to the 128 x 128 pre-activations.
    """
    many, few = 256 // warp_size(), 128 // warp_size()
    if dtype == torch.float32:  # no tensor cores: a smaller tile feeds the units as well
        if n_tokens <= 16:
            return Blocks(16, 32, 128, num_warps=many, num_stages=3)
        return Blocks(most_tokens // 2, 64, 32, num_warps=many, num_stages=3)
    if n_tokens <= 16:
        return Blocks(16, 64, 128, num_warps=few, num_stages=3)
    return Blocks(64 if n_tokens <= 64 else most_tokens, 128, 64, num_warps=many, num_stages=3)


def encode_grid(n_tokens: int, d_sae: int, blocks: Blocks) -> tuple[int, int, int]:
    """The grid of programs that own a tile of tokens and a part of d_sae.

    Part i is the tiles i, i + parts, ... of d_sae. Few tokens spread over many parts.
    """
    n_tiles = ceil_div(n_tokens, blocks.T)
    n_parts = max(ceil_div(PROGRAMS, max(n_tiles, 1)), PARTS_TOGETHER)
    return grouped(n_tiles, min(n_parts, ceil_div(d_sae, blocks.N)))


def grouped(n_tiles: int, n_parts: int) -> tuple[int, int, int]:
    """(tiles run together, parts, how often), which the GPU starts in this order.

    A group's tiles stay in the L2 cache while the parts beside them stream the other operand.
    """
    return min(n_tiles, TILES_TOGETHER), n_parts, ceil_div(n_tiles, TILES_TOGETHER)


def ceil_div(n: int, divisor: int) -> int:
    """How many steps of ``divisor`` cover ``n``."""
    return -(-n // divisor)


@jit
def tile_pre(
    p_x,  # [T, D]
    p_W_enc,  # [D, N]
    p_b_enc,  # [N] fp32
    i_t,  # tile of tokens
    i_n,  # tile of latents
    T,
    stride_x,
    stride_W_enc,
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LATENTS_FIRST: tl.constexpr = False,
):
    """``pre = x @ W_enc + b_enc`` of one tile: [BLOCK_T, BLOCK_N] fp32; b_enc past T.

    With ``LATENTS_FIRST`` [BLOCK_N, BLOCK_T]: what is reduced belongs on the second axis, most of
    which lies within a thread.
    """
    # The axis of the channels in the tile of x; in that of W_enc they lie on the other.
    AXIS: tl.constexpr = 0 if LATENTS_FIRST else 1
    # The tile's corner in int64, what lies within it in int32: half the registers.
    first_t, first_n = i_t * BLOCK_T, i_n * BLOCK_N
    o_t = tl.expand_dims(tl.arange(0, BLOCK_T), AXIS)
    o_n = tl.expand_dims(tl.arange(0, BLOCK_N), 1 - AXIS)
    o_x = tl.expand_dims(tl.arange(0, BLOCK_D), 1 - AXIS)
    o_W_enc = tl.expand_dims(tl.arange(0, BLOCK_D), AXIS)
    m_t, m_n = o_t < T - first_t, o_n < N - first_n
    p_x += tl.cast(first_t, tl.int64) * stride_x + (o_t * stride_x + o_x)
    p_W_enc += first_n + (o_W_enc * stride_W_enc + o_n)
    b_b_enc = tl.load(p_b_enc + first_n + o_n, mask=m_n, other=0.0)
    ROWS: tl.constexpr = BLOCK_N if LATENTS_FIRST else BLOCK_T
    COLUMNS: tl.constexpr = BLOCK_T if LATENTS_FIRST else BLOCK_N
    b_pre = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for i_d in range(0, D, BLOCK_D):
        m_x = m_t & ((o_x < D - i_d) | (D % BLOCK_D == 0))
        m_W_enc = m_n & ((o_W_enc < D - i_d) | (D % BLOCK_D == 0))
        b_x = tl.load(p_x, mask=m_x, other=0.0)
        b_W_enc = tl.load(p_W_enc, mask=m_W_enc, other=0.0)
        if LATENTS_FIRST:
            b_pre = tl.dot(b_W_enc, b_x, b_pre, input_precision="ieee")
        else:
            b_pre = tl.dot(b_x, b_W_enc, b_pre, input_precision="ieee")
        p_x += BLOCK_D
        p_W_enc += tl.cast(stride_W_enc, tl.int64) * BLOCK_D
    return b_pre + b_b_enc


def pre_chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The references' pre-activations [n, d_sae] fp32, of a bounded number of tokens at a time."""
    W_enc = W_enc.float()
    n = max(_CHUNK // W_enc.shape[1], 1)
    for start in range(0, x.shape[0], n):
        tokens = slice(start, start + n)
        yield tokens, torch.addmm(b_enc, x[tokens].float(), W_enc)


def check_encode(x: Tensor, sae: Sae) -> None:
    """Raise ValueError unless ``x`` [T, d_model] fits the SAE and both are what a kernel reads."""
    W_enc, d_sae = sae.W_enc, sae.W_enc.shape[-1]
    if W_enc.ndim != 2 or W_enc.stride(1) != 1:
        raise ValueError(
            f"W_enc: expected [d_model, d_sae] with contiguous rows, got {list(W_enc.shape)} "
            f"with strides {list(W_enc.stride())}"
        )
    if x.ndim != 2 or x.shape[1] != W_enc.shape[0] or x.stride(1) != 1:
        raise ValueError(
            f"x: expected [tokens, {W_enc.shape[0]}] with contiguous rows, got {list(x.shape)} "
            f"with strides {list(x.stride())}"
        )
    if x.dtype not in DTYPES or x.dtype != W_enc.dtype:
        raise ValueError(
            f"x: expected float32, bfloat16 or float16 as W_enc, got {x.dtype} and {W_enc.dtype}"
        )
    for name, tensor in (("b_enc", sae.b_enc), ("threshold", sae.threshold)):
        fits = tensor.shape == (d_sae,) and tensor.dtype == torch.float32
        if not fits or not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected [{d_sae}] torch.float32, contiguous, "
                f"got {list(tensor.shape)} {tensor.dtype} with strides {list(tensor.stride())}"
            )
    if sae.k is not None and not 1 <= sae.k <= min(MAX_K, d_sae):
        raise ValueError(f"sae.k: expected 1 to {min(MAX_K, d_sae)}, got {sae.k}")
