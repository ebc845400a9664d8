"""The SAE that the full encodes take, the tiles that they cut a product into, and one tile of it.

The rounding of a product may depend on the tile, and on the place in it, in which a number lies. So
pre-activations are compared only where they come from the same product, or from the same tile of
the same kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from saif_kernels._triton import jit, tl, warp_size

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_K = 256  # latents that encode_topk keeps of a token: in registers, which spill above 128

# Enough programs to fill a GPU of 100 to 300 multiprocessors, each of which mostly holds two.
PROGRAMS = 256
# Tiles of one operand, and parts of the other, that run together and share the L2 cache.
TILES_TOGETHER = 16
PARTS_TOGETHER = 8

# What pre_chunks holds at a time: few pre-activations, which stay in the cache of a CPU, but enough
# tokens for an efficient product.
_CHUNK, _CHUNK_TOKENS = 2**18, 64


class Sae(Protocol):
    """The part of an SAE that an encode reads; ``saif_fast.SparseAutoencoder`` has it."""

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
        """Number of latents that a token activates, of a TopK SAE; else None."""


class Blocks(NamedTuple):
    """One tile of the product, and how it is run."""

    T: int  # tokens
    N: int  # latents
    D: int  # channels of a step
    num_warps: int
    num_stages: int


class InputPointers(NamedTuple):
    """The tokens that are encoded."""

    x: Any  # [T, D]
    stride: int


class EncoderPointers(NamedTuple):
    """The SAE that encodes them."""

    W_enc: Any  # [D, N]
    b_enc: Any  # [N] fp32
    threshold: Any  # [N] fp32, or None for 0
    stride: int  # of W_enc


class EncodeSizes(NamedTuple):
    """Constants that an encoding kernel is compiled for; ``SIZES`` in the kernels."""

    D: int  # channels of a token
    N: int  # latents of the SAE
    BLOCK_T: int  # tokens of a tile
    BLOCK_N: int  # latents of a tile
    BLOCK_D: int  # channels of a step


def encode_arguments(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor | None, blocks: Blocks
) -> dict[str, Any]:
    """Return the arguments that every encoding kernel takes, with those that run it."""
    d_model, d_sae = W_enc.shape
    return {
        "tokens": InputPointers(x, x.stride(0)),
        "n_tokens": x.shape[0],
        "encoder": EncoderPointers(W_enc, b_enc, threshold, W_enc.stride(0)),
        "SIZES": EncodeSizes(d_model, d_sae, blocks.T, blocks.N, blocks.D),
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }


def encode_blocks(n_tokens: int, dtype: torch.dtype, most_tokens: int = 128) -> Blocks:
    """Choose the tile for ``n_tokens`` of ``dtype``.

    It has at most ``most_tokens`` (64 or 128; half in fp32). A program that keeps much of each
    token asks for 64, because that would not fit in registers beside 128 x 128 pre-activations.
    """
    many, few = 256 // warp_size(), 128 // warp_size()
    if dtype == torch.float32:  # without tensor cores a smaller tile keeps the units busy, too
        if n_tokens <= 16:
            return Blocks(16, 32, 128, num_warps=many, num_stages=3)
        return Blocks(most_tokens // 2, 64, 32, num_warps=many, num_stages=3)
    if n_tokens <= 16:
        return Blocks(16, 64, 128, num_warps=few, num_stages=3)
    return Blocks(64 if n_tokens <= 64 else most_tokens, 128, 64, num_warps=many, num_stages=3)


def encode_grid(n_tokens: int, d_sae: int, blocks: Blocks) -> tuple[int, int, int]:
    """Return the grid of programs that each own a tile of tokens and a part of d_sae.

    Part i is the tiles i, i + parts, ... of d_sae. Few tokens are spread over many parts.
    """
    n_tiles = ceil_div(n_tokens, blocks.T)
    n_parts = max(ceil_div(PROGRAMS, max(n_tiles, 1)), PARTS_TOGETHER)
    return grouped(n_tiles, min(n_parts, ceil_div(d_sae, blocks.N)))


def grouped(n_tiles: int, n_parts: int) -> tuple[int, int, int]:
    """Return the grid (tiles of a group, parts, groups), which the GPU starts in this order.

    A group's tiles stay in the L2 cache while the parts beside them stream the other operand.
    """
    return min(n_tiles, TILES_TOGETHER), n_parts, ceil_div(n_tiles, TILES_TOGETHER)


def ceil_div(n: int, divisor: int) -> int:
    """Return ``n / divisor``, rounded up."""
    return -(-n // divisor)


@jit
def tile_pre(
    tokens,  # InputPointers
    n_tokens,
    encoder,  # EncoderPointers
    i_t,  # tile of tokens
    i_n,  # tile of latents
    SIZES: tl.constexpr,
    LATENTS_FIRST: tl.constexpr = False,
):
    """Return ``pre = x @ W_enc + b_enc`` of one tile: [BLOCK_T, BLOCK_N] fp32; b_enc past T.

    With ``LATENTS_FIRST`` it is [BLOCK_N, BLOCK_T]: the axis that is reduced should be the second,
    most of which lies within a thread.
    """
    D: tl.constexpr = SIZES.D
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    BLOCK_N: tl.constexpr = SIZES.BLOCK_N
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    # The axis of the channels in the tile of x; in that of W_enc they lie on the other.
    AXIS: tl.constexpr = 0 if LATENTS_FIRST else 1
    # The tile's corner is in int64, offsets within it are in int32: half the registers.
    first_t, first_n = i_t * BLOCK_T, i_n * BLOCK_N
    o_t = tl.expand_dims(tl.arange(0, BLOCK_T), AXIS)
    o_n = tl.expand_dims(tl.arange(0, BLOCK_N), 1 - AXIS)
    o_x = tl.expand_dims(tl.arange(0, BLOCK_D), 1 - AXIS)
    o_W_enc = tl.expand_dims(tl.arange(0, BLOCK_D), AXIS)
    m_t, m_n = o_t < n_tokens - first_t, o_n < SIZES.N - first_n
    p_x = tokens.x + (tl.cast(first_t, tl.int64) * tokens.stride + (o_t * tokens.stride + o_x))
    p_W_enc = encoder.W_enc + (first_n + (o_W_enc * encoder.stride + o_n))
    b_b_enc = tl.load(encoder.b_enc + first_n + o_n, mask=m_n, other=0.0)
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
        p_W_enc += tl.cast(encoder.stride, tl.int64) * BLOCK_D
    return b_pre + b_b_enc


def pre_chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield pre-activations [n, d_sae] fp32 in torch, of a bounded number of tokens at a time."""
    W_enc = W_enc.float()
    n = max(_CHUNK // W_enc.shape[1], _CHUNK_TOKENS)
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
    if sae.k is not None and not 1 <= sae.k <= d_sae:
        raise ValueError(f"sae.k: expected 1 to {d_sae}, got {sae.k}")
