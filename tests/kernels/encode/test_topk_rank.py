"""topk_rank against float64 pre-activations counted one by one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saif_kernels import encode_topk, topk_rank
from saif_kernels.encode import _tile
from saif_kernels.encode.topk_rank import topk_rank_torch, topk_rank_triton

sys.path.insert(0, str(Path(__file__).parents[1]))
from encode_inputs import (
    CASES,
    DTYPES,
    EPSILON,
    Allocations,
    EncodeCase,
    case_id,
    random_encode,
    whole_numbers,
)
from op_inputs import DEVICE, OPS

either = pytest.mark.parametrize(
    "op", [topk_rank_torch, topk_rank_triton], ids=["reference", "kernel"]
)


def expected(case: EncodeCase, latents: Tensor) -> Tensor:
    """Ranks [T, L] int32: the place of each latent in a stable sort."""
    order = case.sae.pre(case.x).sort(dim=1, descending=True, stable=True).indices
    places = order.argsort(dim=1)
    return places[:, latents].int()


def run(op: Any, case: EncodeCase, latents: Tensor) -> Tensor:
    result: Tensor = op(case.x, case.sae.W_enc, case.sae.b_enc, latents)
    return result


def some(n: int, d_sae: int) -> Tensor:
    """Latents of all tiles, the first and the last among them, in no order."""
    return torch.linspace(0, d_sae - 1, n, device=DEVICE).long().flip(0)


@either
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_float64(op: Any, case: dict[str, Any]) -> None:
    inputs = random_encode(**case, device=DEVICE)
    latents = some(5, case["d_sae"])
    pre = inputs.sae.pre(inputs.x)
    # Within epsilon of another latent rounding may decide which comes first.
    gap = (pre[:, None, :] - pre[:, latents, None]).abs()
    near = (gap < EPSILON).sum(dim=2) > 1  # one is itself
    assert near.float().mean() < 0.05, "too many latents lie near another for a test"
    result = run(op, inputs, latents)
    assert torch.equal(result[~near], expected(inputs, latents)[~near])


@either
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_latents", [1, 33])
@pytest.mark.parametrize("n_programs", [1, 256])
def test_ties_go_to_the_lower_index(
    op: Any,
    dtype: torch.dtype,
    n_latents: int,
    n_programs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_tile, "PROGRAMS", n_programs)
    monkeypatch.setattr(_tile, "PARTS_TOGETHER", 1)
    case = whole_numbers(70, dtype, "relu", DEVICE)
    latents = some(n_latents, 300)
    assert torch.equal(run(op, case, latents), expected(case, latents))


@either
def test_groups_of_tiles_leave_no_token_out(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tile, "TILES_TOGETHER", 2)  # 5 tiles: the third group is half empty
    case = whole_numbers(300, torch.float32, "relu", DEVICE)
    latents = some(3, 300)
    assert torch.equal(run(op, case, latents), expected(case, latents))


@either
def test_more_latents_than_one_launch_takes(op: Any) -> None:
    case = whole_numbers(20, torch.float32, "relu", DEVICE)
    latents = some(130, 300).int()
    assert torch.equal(run(op, case, latents), expected(case, latents))


@either
def test_a_rank_below_k_is_membership_of_the_top_k(op: Any) -> None:
    case = random_encode(40, kind="topk", device=DEVICE)
    assert case.sae.k is not None
    latents = torch.arange(300, device=DEVICE)
    member = run(op, case, latents) < case.sae.k
    assert (member.sum(dim=1) == case.sae.k).all()
    indices = encode_topk(case.x, case.sae, case.sae.k).indices.long()
    near = case.sae.near(case.x, case.sae.k)
    assert near.float().mean() < 0.2
    assert member.gather(1, indices)[~near].all()


@pytest.mark.skipif(DEVICE != "cpu", reason="bends the interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranks_are_distinct_wherever_a_tile_holds_the_latents(dtype: torch.dtype) -> None:
    from interpreter import rounded_by_place

    # Pairs of latents that only rounding tells apart.
    case = random_encode(20, d_sae=70, dtype=dtype)
    W_enc, b_enc = case.sae.W_enc.repeat(1, 2), case.sae.b_enc.repeat(2)
    case = case._replace(sae=case.sae._replace(W_enc=W_enc, b_enc=b_enc))
    latents = torch.arange(140, dtype=torch.int32)
    with rounded_by_place():
        ranks = run(topk_rank_triton, case, latents)
    assert torch.equal(ranks.sort(dim=1).values, latents.expand(20, -1))


@either
def test_a_latent_may_be_chosen_twice_and_none_at_all(op: Any) -> None:
    case = random_encode(9, device=DEVICE)
    ranks = run(op, case, torch.tensor([7, 7], device=DEVICE))
    assert torch.equal(ranks[:, 0], ranks[:, 1])
    assert run(op, case, torch.empty(0, dtype=torch.int64, device=DEVICE)).shape == (9, 0)
    assert run(op, case._replace(x=case.x[:0]), some(3, 300)).shape == (0, 3)


@either
def test_rows_may_lie_apart(op: Any) -> None:
    case = whole_numbers(9, torch.float32, "relu", DEVICE)
    wide = torch.full((9, 3 * 64), torch.nan, device=DEVICE)
    wide[:, 64:128] = case.x
    latents = some(4, 300)
    assert torch.equal(run(op, case._replace(x=wide[:, 64:128]), latents), expected(case, latents))


@either
def test_latents_may_lie_apart(op: Any) -> None:
    case = whole_numbers(9, torch.float32, "relu", DEVICE)
    latents = some(8, 300).int()[::2]
    assert torch.equal(run(op, case, latents), expected(case, latents))


def test_pre_activations_are_never_in_memory() -> None:
    case = random_encode(200, d_sae=1500, device=DEVICE)
    with Allocations() as allocations:
        run(topk_rank_triton, case, some(4, 1500))
    assert 0 < allocations.largest < 200 * 1500


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.saif.topk_rank.default, OPS["topk_rank"]())


@pytest.mark.parametrize(
    "latents", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)], ids=["2d", "float"]
)
def test_misfits_are_refused(latents: Tensor) -> None:
    case = random_encode(3)
    with pytest.raises(ValueError, match=r"latents: expected \[L\]"):
        topk_rank(case.x, case.sae, latents)
    with pytest.raises(ValueError, match="x: expected"):
        topk_rank(case.x[:, :3], case.sae, torch.zeros(2, dtype=torch.int64))
