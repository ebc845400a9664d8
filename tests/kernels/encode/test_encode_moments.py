"""encode_moments against a float64 encode."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saif_kernels import Moments, encode_moments
from saif_kernels.encode import _tile
from saif_kernels.encode._tile import MAX_K
from saif_kernels.encode.moments import encode_moments_torch, encode_moments_triton
from saif_kernels.encode.topk import encode_topk_triton

sys.path.insert(0, str(Path(__file__).parents[1]))
from encode_inputs import (
    CASES,
    DTYPES,
    EPSILON,
    KINDS,
    Allocations,
    EncodeCase,
    case_id,
    flat,
    random_encode,
    whole_numbers,
)
from op_inputs import DEVICE, OPS

either = pytest.mark.parametrize(
    "op", [encode_moments_torch, encode_moments_triton], ids=["reference", "kernel"]
)


def expected(case: EncodeCase) -> Tensor:
    """The table [6, d_sae] fp64, from all activations."""
    a, b = case.sae.encode(case.x), case.sae.encode(case.without)
    none = a.new_zeros(1, a.shape[1])  # the largest of no tokens
    largest = torch.cat([a, none]).amax(0)
    sums = [(a > 0).sum(0), a.sum(0), a.square().sum(0), largest, (a > b).sum(0), (a - b).sum(0)]
    return torch.stack([row.double() for row in sums])


def run(op: Any, case: EncodeCase, *, compared: bool = True) -> Tensor:
    result: Tensor = op(case.x, case.without if compared else None, *flat(case), case.sae.k)
    return result


def clear_tokens(case: EncodeCase) -> EncodeCase:
    """The case without tokens at which rounding may decide which latents are active."""
    sae = case.sae
    # A TopK SAE's last one in and first one out must differ, whatever else is equal.
    near = sae.near(case.x, sae.k) | sae.near(case.without, sae.k)
    assert near.float().mean() < 0.2, "too many tokens lie near a boundary for a test"
    return EncodeCase(case.x[~near], case.without[~near], sae)


@either
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_float64(op: Any, case: dict[str, Any]) -> None:
    inputs = clear_tokens(random_encode(**case, device=DEVICE))
    truth = expected(inputs)
    result = run(op, inputs)
    counts = [0, 4]
    assert torch.equal(result[counts], truth[counts])
    # fp32 sums over the tokens of a part on top of the errors of the terms.
    error = (result - truth).abs().amax(1)
    scale = truth[[0, 1, 2, 3, 0, 1]].amax(1).clamp(min=1.0)
    assert (error <= 10 * EPSILON * scale).all()


@either
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_tokens", [5, 200])
def test_whole_numbers_and_their_ties_are_exact(
    op: Any, dtype: torch.dtype, kind: str, n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tile, "PROGRAMS", 1)  # the cuts' programs walk all of d_sae
    case = whole_numbers(n_tokens, dtype, kind, DEVICE)
    assert torch.equal(run(op, case), expected(case))


@either
def test_groups_of_tiles_leave_no_latent_out(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tile, "TILES_TOGETHER", 2)  # 5 tiles: the third group is half empty
    case = whole_numbers(70, torch.float32, "relu", DEVICE)
    assert torch.equal(run(op, case), expected(case))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_tokens_add_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tile, "_CHUNK", 1)
    monkeypatch.setattr(_tile, "_CHUNK_TOKENS", 7)
    case = whole_numbers(20, torch.float32, kind, DEVICE)
    assert torch.equal(run(encode_moments_torch, case), expected(case))


@either
def test_a_token_may_have_more_latents_than_registers_hold(op: Any) -> None:
    case = whole_numbers(9, torch.float32, "topk", DEVICE)
    sae = case.sae._replace(k=MAX_K + 24, b_enc=case.sae.b_enc + 500)  # so that all are positive
    many = case._replace(sae=sae)
    assert torch.equal(run(op, many), expected(many))


@either
def test_without_a_comparison_the_table_is_shorter(op: Any) -> None:
    case = whole_numbers(70, torch.float32, "jumprelu", DEVICE)
    assert torch.equal(run(op, case, compared=False), expected(case)[:4])


@either
@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(op: Any, kind: str) -> None:
    case = random_encode(0, kind=kind, device=DEVICE)
    assert torch.equal(run(op, case), torch.zeros(6, 300, dtype=torch.float64, device=DEVICE))


@either
def test_rows_may_lie_apart(op: Any) -> None:
    case = whole_numbers(9, torch.float32, "relu", DEVICE)
    wide = torch.full((9, 5 * 64), torch.nan, device=DEVICE)
    wide[:, 64:128], wide[:, 192:256] = case.x, case.without
    apart = case._replace(x=wide[:, 64:128], without=wide[:, 192:256])
    assert torch.equal(run(op, apart), expected(case))


@pytest.mark.parametrize("kind", KINDS)
def test_the_door_names_the_columns(kind: str) -> None:
    case = whole_numbers(40, torch.float32, kind, DEVICE)
    moments = encode_moments(case.x, case.sae, case.without)
    assert moments.n_tokens == 40
    assert moments.n_active.dtype == torch.int64
    assert moments.n_greater is not None and moments.n_greater.dtype == torch.int64
    for column, truth in zip(moments[1:], expected(case), strict=True):
        assert torch.equal(column.double(), truth)
    alone = encode_moments(case.x, case.sae)
    assert alone.n_greater is None and alone.sum_difference is None
    assert torch.equal(alone.n_active, moments.n_active)


def test_merged_calls_are_one_call() -> None:
    case = whole_numbers(50, torch.float32, "jumprelu", DEVICE)
    parts = [
        encode_moments(case.x[rows], case.sae, case.without[rows])
        for rows in (slice(0, 13), slice(13, 50))
    ]
    whole = encode_moments(case.x, case.sae, case.without)
    merged: Moments = parts[0].merge(parts[1])
    assert merged.n_tokens == whole.n_tokens
    for ours, theirs in zip(merged[1:], whole[1:], strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="other: expected both or neither"):
        merged.merge(encode_moments(case.x, case.sae))


@pytest.mark.parametrize("kind", KINDS)
def test_pre_activations_are_never_in_memory(kind: str) -> None:
    case = random_encode(400, d_sae=700, kind=kind, device=DEVICE)
    with Allocations() as allocations:
        run(encode_moments_triton, case)
    assert 0 < allocations.largest < 400 * 700


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str) -> None:
    torch.library.opcheck(torch.ops.saif.encode_moments.default, OPS["encode_moments"](kind=kind))


def test_misfits_are_refused() -> None:
    case = random_encode(5)
    with pytest.raises(ValueError, match=r"without: expected \[5, 64\] as x, got \[4, 64\]"):
        encode_moments(case.x, case.sae, case.without[:4])
    with pytest.raises(ValueError, match="x: expected"):
        encode_moments(case.x[:, :3], case.sae)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_token_of_a_topk_sae_has_its_k_latents(dtype: torch.dtype) -> None:
    d_model = 4096 if DEVICE == "cuda" else 300
    check_k_latents(random_encode(200, d_model=d_model, dtype=dtype, kind="topk", device=DEVICE))


@pytest.mark.skipif(DEVICE != "cpu", reason="bends the interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_k_latents_wherever_a_tile_holds_them(dtype: torch.dtype) -> None:
    from interpreter import rounded_by_place

    with rounded_by_place():
        check_k_latents(random_encode(200, d_model=64, dtype=dtype, kind="topk"))


def check_k_latents(case: EncodeCase) -> None:
    """Those of encode_topk are counted, and no other."""
    W_enc, b_enc, k = case.sae.W_enc, case.sae.b_enc, case.sae.k
    assert k is not None
    table = encode_moments_triton(case.x, None, W_enc, b_enc, None, k)
    largest = encode_topk_triton(case.x, W_enc, b_enc, None, k)
    assert (largest.indices >= 0).all()
    n_active = largest.indices.flatten().bincount(minlength=W_enc.shape[1])
    assert torch.equal(table[0], n_active.double())
    assert table[1].sum() == pytest.approx(largest.values.double().sum().item())
