"""Every op in a CUDA graph: a replay computes with what its buffers hold then, as a launch does.

``make gpu-check`` also runs this file under compute-sanitizer: it launches every kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from saif_kernels import (
    Tally,
    Window,
    add_steer_rms_norm,
    encode_moments,
    encode_topk,
    prepare_steps_,
    steer_,
    tally_steps_,
    topk_rank,
)

sys.path.insert(0, str(Path(__file__).parent))
from op_inputs import DEVICE
from steering_cases import Case, make_case

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a GPU")


def captured(launch: Callable[[], object]) -> Callable[[], object]:
    """The replay of one call as a graph; a call before it compiles and is not in it."""
    if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:
        return launch  # under compute-sanitizer; memory from the driver cannot be captured
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def fill(target: Case, source: Case) -> None:
    """Copy all contents; every pointer stays."""
    target.rows.table.copy_(source.rows.table)
    for table, new in zip(target.bank, source.bank, strict=True):
        table.copy_(new)
    for table, new in zip(target, source, strict=True):
        if isinstance(table, Tensor):
            table.copy_(new)


@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize(
    ("n_tokens", "d_model"),
    [(7, 64), (7, 8192), (300, 64), (2500, 64)],
    ids=["few", "few-split", "tiles", "large-tiles"],
)
def test_steer_replays_with_new_rows_sets_and_scales(
    n_tokens: int, d_model: int, with_residual: bool
) -> None:
    def case(seed: int) -> Case:
        return make_case(
            n_tokens=n_tokens,
            d_model=d_model,
            dtype=torch.bfloat16,
            with_residual=with_residual,
            seed=seed,
        ).to(DEVICE)

    static = case(0)
    replay = captured(lambda: steer_(*static))
    for seed in (1, 2):
        fresh = case(seed)
        fill(static, fresh)
        replay()
        before = fresh.hidden.clone()
        steer_(*fresh)
        assert torch.equal(static.hidden, fresh.hidden)
        assert not torch.equal(before, fresh.hidden)


@pytest.mark.parametrize("gemma", [False, True], ids=["plain", "Gemma"])
def test_the_fused_norm_replays_with_new_rows_sets_and_scales(gemma: bool) -> None:
    weight = torch.rand(64, device=DEVICE)

    def norm(case: Case) -> Tensor:
        hidden, residual, *steering = case
        return add_steer_rms_norm(hidden, residual, weight, 1e-6, *steering, gemma=gemma)

    static = make_case(n_tokens=33).to(DEVICE)
    results: list[Tensor] = []
    replay = captured(lambda: results.append(norm(static)))
    for seed in (1, 2):
        fresh = make_case(n_tokens=33, seed=seed).to(DEVICE)
        fill(static, fresh)
        replay()
        assert torch.equal(results[-1], norm(fresh))


def test_a_step_replays_with_new_positions_and_requests() -> None:
    n_tokens = 128
    static = make_case(n_tokens=n_tokens).to(DEVICE)
    starts = torch.zeros(5, dtype=torch.int32, device=DEVICE)
    request_row = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    positions = torch.zeros(n_tokens, dtype=torch.int64, device=DEVICE)

    def step() -> None:
        prepare_steps_(
            static.token_row, static.token_scale, starts, request_row, positions, static.rows
        )
        steer_(*static)

    replay = captured(step)
    for seed, ends in ((1, [0, 30, 31, 100, 120]), (2, [0, 1, 60, 60, 128])):
        fresh = make_case(n_tokens=n_tokens, seed=seed).to(DEVICE)
        fill(static, fresh)
        static.rows.write_row(seed, [(1, 0.5)], 40, Window(prompt=True, omega=0.1))
        starts.copy_(torch.tensor(ends))
        request_row.copy_(torch.tensor([seed, -1, 0, 3]))
        positions.copy_(torch.arange(n_tokens) + seed)
        replay()
        replayed = static.hidden.clone()
        static.hidden.copy_(fresh.hidden)
        step()
        assert torch.equal(replayed, static.hidden)
        assert not torch.equal(replayed, fresh.hidden)


@pytest.mark.parametrize("max_dose", [None, 0.1], ids=["no-cap", "cap"])
@pytest.mark.parametrize(
    ("n_tokens", "d_model"), [(40, 64), (40, 8192), (128, 64)], ids=["few", "few-split", "tiles"]
)
def test_a_step_replays_with_its_tally(n_tokens: int, d_model: int, max_dose: float | None) -> None:
    static = make_case(n_tokens=n_tokens, d_model=d_model).to(DEVICE)
    tally = Tally.allocate(1, n_tokens, 4, DEVICE)
    starts = torch.tensor([0, 9, 20, 20, n_tokens - 3], dtype=torch.int32, device=DEVICE)
    request_row = torch.tensor([0, -1, 2, 3], dtype=torch.int32, device=DEVICE)
    positions = torch.arange(n_tokens, device=DEVICE)

    def step() -> None:
        batch = (static.token_row, static.token_scale, starts, request_row, positions)
        prepare_steps_(*batch, static.rows, tally.token_fresh, tally.counts)
        steer_(*static, dose=tally.dose[0], max_dose=max_dose)
        tally_steps_(static.token_row, tally)

    def tallied(launch: Callable[[], object], hidden: Tensor) -> tuple[Tensor, ...]:
        for row in range(4):
            tally.clear_row(row)
        static.hidden.copy_(hidden)
        launch()
        return static.hidden.clone(), *(table.clone() for table in Tally.columns(tally.table))

    replay = captured(step)
    for seed in (1, 2):
        fresh = make_case(n_tokens=n_tokens, d_model=d_model, seed=seed).to(DEVICE)
        fill(static, fresh)
        for row in (0, 3):
            static.rows.write_row(row, [(row % 2, 0.5), (2, 1.0)], 2 + seed)
        replayed, launched = (tallied(launch, fresh.hidden) for launch in (replay, step))
        assert (launched[1][:, Tally.STEERED] > 0).tolist() == [True, False, False, True]
        assert torch.equal(launched[1][:, Tally.PLANNED], launched[1][:, Tally.STEERED])
        # The sums of doses are of any order.
        torch.testing.assert_close(replayed, launched, rtol=1e-6, atol=0)
        assert tally.missed.item() == 0 and (tally.dose == -1).all()


class Sae(NamedTuple):
    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    k: int | None = None


ENCODES: dict[str, Callable[[Tensor, Sae], object]] = {
    "encode_topk": lambda x, sae: encode_topk(x, sae, 5),
    "encode_moments": lambda x, sae: encode_moments(x, sae, x.flip(0)),
    "encode_moments-TopK": lambda x, sae: encode_moments(x, sae._replace(k=5)),
    "topk_rank": lambda x, sae: topk_rank(x, sae, torch.arange(3, device=DEVICE)),
}


@pytest.mark.parametrize("n_tokens", [7, 300])
@pytest.mark.parametrize("name", ENCODES)
def test_a_full_encode_replays_with_new_activations(name: str, n_tokens: int) -> None:
    sae = Sae(
        torch.randn(64, 1000, dtype=torch.bfloat16, device=DEVICE) / 8,
        torch.randn(1000, device=DEVICE) / 4,
        torch.rand(1000, device=DEVICE) / 4,
    )
    x = torch.empty(n_tokens, 64, dtype=torch.bfloat16, device=DEVICE).normal_()
    results: list[object] = []
    replay = captured(lambda: results.append(ENCODES[name](x, sae)))
    for _ in range(2):
        x.normal_()
        replay()
        torch.testing.assert_close(results[-1], ENCODES[name](x, sae), rtol=0, atol=0)
