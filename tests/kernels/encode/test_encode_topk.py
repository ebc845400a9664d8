"""encode_topk against a float64 encode and a stable sort."""

from __future__ import annotations

import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saif_kernels import TopK, encode_topk
from saif_kernels.encode import _tile
from saif_kernels.encode.topk import encode_topk_torch, encode_topk_triton

sys.path.insert(0, str(Path(__file__).parents[1]))
from encode_inputs import (
    CASES,
    DTYPES,
    EPSILON,
    KINDS,
    Allocations,
    EncodeCase,
    RandomSae,
    case_id,
    flat,
    random_encode,
    whole_numbers,
)
from op_inputs import DEVICE, OPS

either = pytest.mark.parametrize(
    "op", [encode_topk_torch, encode_topk_triton], ids=["reference", "kernel"]
)


def expected(case: EncodeCase, k: int) -> tuple[Tensor, Tensor]:
    """Values fp64 and indices, from all activations."""
    a = case.sae.encode(case.x)
    values, indices = a.sort(dim=1, descending=True, stable=True)
    return values[:, :k], torch.where(values > 0, indices, -1)[:, :k].int()


def run(op: Any, case: EncodeCase, k: int) -> TopK:
    return TopK(*op(case.x, *flat(case), k))


@either
@pytest.mark.parametrize(
    ("case", "k"), list(zip(CASES, cycle([1, 12, 70]), strict=False)), ids=case_id
)
def test_equals_float64(op: Any, case: dict[str, Any], k: int) -> None:
    inputs = random_encode(**case, device=DEVICE)
    k = min(k, inputs.sae.k or k)
    values, indices = expected(inputs, k)
    result = run(op, inputs, k)
    clear = ~inputs.sae.near(inputs.x, k)
    assert clear.float().mean() > 0.8, "too many tokens lie near a tie for a test"
    assert torch.equal(result.indices[clear], indices[clear])
    assert (result.values - values)[clear].abs().max() < EPSILON


@either
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_programs", [1, 256])
def test_ties_go_to_the_lower_index(
    op: Any, dtype: torch.dtype, kind: str, n_programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With one program per tile of tokens, it walks all of d_sae; else each walks one tile.
    monkeypatch.setattr(_tile, "PROGRAMS", n_programs)
    monkeypatch.setattr(_tile, "PARTS_TOGETHER", 1)
    case = whole_numbers(70, dtype, kind, DEVICE)
    values, indices = expected(case, 12)
    assert (values.diff(dim=1) == 0).any()
    result = run(op, case, 12)
    assert torch.equal(result.indices, indices)
    assert torch.equal(result.values.double(), values)


@either
def test_groups_of_tiles_leave_no_token_out(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tile, "TILES_TOGETHER", 2)  # 5 tiles: the third group is half empty
    case = whole_numbers(300, torch.float32, "relu", DEVICE)
    values, indices = expected(case, 3)
    result = run(op, case, 3)
    assert torch.equal(result.indices, indices)
    assert torch.equal(result.values.double(), values)


@either
def test_absent_latents_are_zero_and_minus_one(op: Any) -> None:
    case = random_encode(33, device=DEVICE)
    n_active = (case.sae.encode(case.x) > 0).sum(dim=1)
    result = run(op, case, 120)
    assert 0 < n_active.min() and n_active.max() < 120
    place = torch.arange(120, device=DEVICE)
    absent = place >= n_active[:, None]
    assert torch.equal(result.indices == -1, absent)
    assert torch.equal(result.values == 0, absent)


@either
def test_nan_and_infinite_tokens_do_not_touch_the_others(op: Any) -> None:
    case = random_encode(10, device=DEVICE)
    clean = run(op, case, 5)
    case.x[3] = torch.nan
    dirty = run(op, case, 5)
    others = torch.arange(10, device=DEVICE) != 3
    assert torch.equal(dirty.indices[others], clean.indices[others])
    assert (dirty.indices[3] == -1).all() and (dirty.values[3] == 0).all()


@either
def test_rows_may_lie_apart(op: Any) -> None:
    case = random_encode(9, device=DEVICE)
    wide = torch.full((9, 3 * 64), torch.nan, device=DEVICE)
    wide[:, 64:128] = case.x
    result = run(op, case._replace(x=wide[:, 64:128]), 4)
    assert torch.equal(result.indices, run(op, case, 4).indices)


@either
def test_no_tokens(op: Any) -> None:
    result = run(op, random_encode(0, device=DEVICE), 4)
    assert result.values.shape == result.indices.shape == (0, 4)


def test_pre_activations_are_never_in_memory() -> None:
    case = random_encode(200, d_sae=1500, device=DEVICE)
    with Allocations() as allocations:
        run(encode_topk_triton, case, 4)
    assert 0 < allocations.largest < 200 * 1500


@pytest.mark.parametrize("kind", KINDS)
def test_the_door_fills_up_what_an_sae_cannot_give(kind: str) -> None:
    case = random_encode(6, d_sae=30, kind=kind, device=DEVICE)
    result = encode_topk(case.x, case.sae, 40)
    values, indices = expected(case, 30)
    assert torch.equal(result.indices[:, :30], indices)
    torch.testing.assert_close(result.values[:, :30].double(), values, rtol=1e-6, atol=1e-6)
    assert (result.indices[:, 30:] == -1).all() and (result.values[:, 30:] == 0).all()


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.saif.encode_topk.default, OPS["encode_topk"]())


SAE = random_encode().sae


@pytest.mark.parametrize(
    ("x", "sae", "k", "message"),
    [
        (torch.zeros(3, 65), SAE, 1, r"x: expected \[tokens, 64\]"),
        (torch.zeros(64, 3).T, SAE, 1, r"x: expected \[tokens, 64\] with contiguous rows"),
        (torch.zeros(3, 64, dtype=torch.float16), SAE, 1, "x: expected .* as W_enc"),
        (torch.zeros(3, 64), SAE, 0, "k: expected 1 to 256, got 0"),
        (torch.zeros(3, 64), SAE, 257, "k: expected 1 to 256, got 257"),
        (torch.zeros(3, 64), SAE._replace(k=301), 1, "sae.k: expected 1 to 300, got 301"),
        (torch.zeros(3, 64), SAE._replace(b_enc=torch.zeros(2)), 1, r"b_enc: expected \[300\]"),
        (torch.zeros(3, 64), SAE._replace(threshold=torch.zeros(1).expand(300)), 1, "contiguous"),
        (torch.zeros(3, 64), SAE._replace(W_enc=torch.zeros(300, 64).T), 1, "W_enc: expected"),
    ],
    ids="d_model x-strides dtype k-0 k-257 sae-k b_enc threshold-strides W_enc-strides".split(),
)
def test_misfits_are_refused(x: Tensor, sae: RandomSae, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_topk(x, sae, k)
