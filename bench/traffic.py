"""An analytic model of the bytes that each kernel moves, from the kernels' own block sizes.

Rows are counted (hidden, residual, W_enc, W_dec, vector, x): the scalars of a token and of a latent
are below one percent. ``l2`` is what the programs ask for, each load once, with no credit for L1;
``tests/kernels/test_traffic.py`` counts it in the kernels themselves. ``hbm`` is what a GPU with
``L2_BYTES`` of cache must fetch or write back. ``floor`` is every needed byte once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch

from saif_kernels.encode._tile import ceil_div, encode_blocks, encode_grid
from saif_kernels.steer import steer_blocks

# An H100 or H200; two programs per multiprocessor, as the tiles' registers allow.
L2_BYTES = 50 * 2**20
PROGRAMS_AT_ONCE = 2 * 132


class Traffic(NamedTuple):
    """Bytes of one launch."""

    floor: int
    hbm: int
    l2: int


def steer_traffic(
    n_tokens: int, n_sets: int, n_latents: int, d_model: int, itemsize: int
) -> Traffic:
    """Return the traffic of ``steer_`` with a residual; token t has the one set ``set_of(t, ...)``.

    Args:
        n_tokens: all steered.
        n_sets: distinct sets, at most ``n_tokens``.
        n_latents: live latents of each set.
        d_model: channels.
        itemsize: bytes of an element.
    """
    row = d_model * itemsize
    blocks = steer_blocks(n_tokens, d_model, itemsize)
    set_rows = 2 * n_latents + 1  # W_enc, W_dec, the vector
    n_tiles, n_shared = 0, 0  # tiles read at once, and their tokens; the others are read one by one
    if n_latents > 0 and blocks.tile_t > 1:
        n_tiles, n_shared = shared_tiles(n_tokens, n_sets, blocks.tile_t)
    # hidden and the residual are read for x, whose length bounds the change; hidden is written.
    # Where channels come in steps or in parts, it is read again for the sum.
    token_rows = 3 + (blocks.n_parts > 1)
    rows = 4 * n_shared + token_rows * (n_tokens - n_shared)
    rows += (n_tiles + n_tokens - n_shared) * set_rows
    # Each part of a token writes its share of the pre-activations as fp32, and reads all shares.
    shares = n_tokens * n_latents * blocks.n_parts * (1 + blocks.n_parts) * 4
    floor = (3 * n_tokens + n_sets * set_rows) * row
    # A tile's second pass over hidden finds it in L2 unless the tiles in flight fill it.
    tokens_at_once = min(n_tokens, PROGRAMS_AT_ONCE * blocks.tile_t)
    evicted = 2 * tokens_at_once * row > L2_BYTES
    return Traffic(
        floor=floor,
        hbm=floor + evicted * n_shared * row,
        l2=rows * row + (shares if blocks.n_parts > 1 else 0),
    )


def set_of(token: int, n_tokens: int, n_sets: int) -> int:
    """Return the set of a token: a set's tokens lie next to one another, as a request's do."""
    return token * n_sets // n_tokens


def shared_tiles(n_tokens: int, n_sets: int, tile: int) -> tuple[int, int]:
    """Return how many tiles have tokens that share their set, and how many such tokens."""
    spans = [(first, min(first + tile, n_tokens)) for first in range(0, n_tokens, tile)]
    shared = [
        end - first
        for first, end in spans
        if set_of(first, n_tokens, n_sets) == set_of(end - 1, n_tokens, n_sets)
    ]
    return len(shared), sum(shared)


def rms_norm_traffic(
    n_tokens: int, n_sets: int, n_latents: int, d_model: int, itemsize: int
) -> Traffic:
    """Return the traffic of ``add_steer_rms_norm`` with a residual; as ``steer_traffic``."""
    row = d_model * itemsize
    set_rows = 2 * n_latents + 1
    # hidden is read once, the residual for x and for the sum. Then weight and result.
    token_rows = 3 + 2 + set_rows
    floor = (3 * n_tokens + n_sets * set_rows + 1) * row
    return Traffic(floor=floor, hbm=floor, l2=n_tokens * token_rows * row)


def encode_traffic(
    n_tokens: int, d_sae: int, d_model: int, dtype: torch.dtype, most_tokens: int
) -> Traffic:
    """Return the traffic of a full encode's product, of tiles of at most ``most_tokens``."""
    row = d_model * dtype.itemsize
    blocks = encode_blocks(n_tokens, dtype, most_tokens)
    n_groups = encode_grid(n_tokens, d_sae, blocks)[2]
    floor = (n_tokens + d_sae) * row
    # A group of tiles streams all weights; the next finds them in L2 only where they fit.
    streams = n_groups if d_sae * row > L2_BYTES else 1
    return Traffic(
        floor=floor,
        hbm=floor + (streams - 1) * d_sae * row,
        l2=(n_tokens * ceil_div(d_sae, blocks.N) + d_sae * ceil_div(n_tokens, blocks.T)) * row,
    )


INTRODUCTION = f"""\
# Bytes moved, on paper

Rows only, bf16. floor: every needed byte once, which is 3 * T * d * 2 and the rows of the distinct
sets. hbm: with an L2 cache of {L2_BYTES >> 20} MiB. L2: what the programs ask for. Block sizes are
the kernels' own.
"""


def report() -> Iterator[str]:
    """Yield lines of Markdown: both models in bf16."""
    yield INTRODUCTION
    yield "## steer_"
    yield ""
    yield "S distinct sets of K live latents, one per token, a set's tokens next to one another."
    yield ""
    yield "| T | S | K | d | floor MB | hbm / floor | L2 MB | L2 / floor |"
    yield "|" + "---:|" * 8
    for d, k, s, t in product(
        (2304, 4096, 8192), (0, 1, 16, 64), (1, 16, 256), (1, 16, 64, 256, 1024, 4096, 8192)
    ):
        if s <= t:
            yield f"| {t} | {s} | {k} | {d} |" + _cells(steer_traffic(t, s, k, d, 2))
    yield ""
    yield "## add_steer_rms_norm"
    yield ""
    yield "As above; the normed rows are written in place of the residual stream."
    yield ""
    yield "| T | S | K | d | floor MB | hbm / floor | L2 MB | L2 / floor |"
    yield "|" + "---:|" * 8
    for k, s, t in product((0, 1, 16, 64), (1, 16), (1, 16, 64, 256)):
        if s <= t:
            yield f"| {t} | {s} | {k} | 4096 |" + _cells(rms_norm_traffic(t, s, k, 4096, 2))
    yield ""
    yield "## encode_topk, encode_moments, topk_rank"
    yield ""
    yield "Tiles of at most 64 or 128 tokens, as each op's registers allow."
    yield ""
    yield "| T | d_sae | d | tile | floor MB | hbm / floor | L2 MB | L2 / floor |"
    yield "|" + "---:|" * 8
    for d, d_sae, t, most in product((2304, 4096), (16384, 65536), (1, 64, 1024, 8192), (64, 128)):
        traffic = encode_traffic(t, d_sae, d, torch.bfloat16, most)
        yield f"| {t} | {d_sae} | {d} | {most} |" + _cells(traffic)


def _cells(traffic: Traffic) -> str:
    floor, hbm, l2 = traffic
    return f" {floor / 1e6:.3g} | {hbm / floor:.2f} | {l2 / 1e6:.3g} | {l2 / floor:.2f} |"
