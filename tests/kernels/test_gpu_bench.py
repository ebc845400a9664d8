"""The GPU check and benchmarks as far as they run without a GPU: inputs, gates, yardsticks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gpu"))
sys.path.insert(0, str(Path(__file__).parent))
import steer_inputs as inputs
from device_timing import MAX_CALLS, n_copies
from gemm import gemm
from gpu_report import ADD_NORM, GEMM, WHOLE_SAE, Row, markdown, targets
from op_inputs import DEVICE

from saif_kernels import steer_

RUN = Path(inputs.__file__).with_name("run.py")
FP32 = torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("action", ["check", "bench"])
def test_without_a_gpu_both_say_so_and_exit_with_77(action: str) -> None:
    command = [sys.executable, str(RUN), action]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 77
    assert result.stdout == f"No GPU is here: gpu-{action} has run nothing (exit code 77).\n"


@pytest.mark.parametrize("n_latents", [0, 1, 5])
@pytest.mark.parametrize("n_sets", [1, 3])
def test_the_change_by_hand_is_that_of_steer(n_sets: int, n_latents: int) -> None:
    call = inputs.steer_inputs(12, inputs.sets_of_clamps(n_sets, n_latents, 64, FP32, DEVICE))
    [by_hand] = inputs.copies(call, 1)
    inputs.unfused(by_hand, n_latents)
    torch.testing.assert_close(by_hand.hidden, call.reference())


def test_the_hook_around_the_whole_sae_is_that_of_steer() -> None:
    sae = inputs.WholeSae(64, 512, 4, FP32, DEVICE)
    call = inputs.steer_inputs(12, sae.chosen_set())
    x = call.hidden + call.residual
    steered = call.reference() + call.residual
    torch.testing.assert_close(steered, sae(x), rtol=1e-4, atol=1e-4)


def test_idle_inputs_steer_nothing() -> None:
    call = inputs.steer_inputs(12, inputs.sets_of_clamps(1, 2, 64, FP32, DEVICE), idle=True)
    before = call.hidden.clone()
    steer_(*call)
    assert torch.equal(call.hidden, before)


def test_nothing_wrong_gets_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = inputs.steer_inputs(12, inputs.sets_of_clamps(3, 2, 64, FP32, DEVICE))
    inputs.gate(call)
    monkeypatch.setattr(inputs, "steer_", lambda *arguments: None)
    with pytest.raises(AssertionError, match="relative error"):
        inputs.gate(call)
    monkeypatch.setattr(inputs, "steer_", lambda hidden, *rest: hidden.fill_(torch.nan))
    with pytest.raises(AssertionError, match="relative error nan"):
        inputs.gate(call)


@pytest.mark.parametrize("n_tokens", [1, 70])
def test_the_gemm_is_the_product(n_tokens: int) -> None:
    x, W_enc = torch.randn(n_tokens, 48, device=DEVICE), torch.randn(48, 200, device=DEVICE)
    b_enc = torch.randn(200, device=DEVICE)
    torch.testing.assert_close(gemm(x, W_enc, b_enc), torch.addmm(b_enc, x, W_enc))


def test_the_norm_is_torchs() -> None:
    hidden, residual = torch.randn(2, 5, 64)
    weight = torch.rand(64)
    expected = torch.nn.functional.rms_norm(hidden + residual, (64,), weight, 1e-6)
    torch.testing.assert_close(inputs.add_rms_norm(hidden, residual, weight), expected)


def test_inputs_rotate_past_the_cache_twice() -> None:
    assert n_copies(10_000_000, 50_000_000) == 10
    assert n_copies(10**9, 50_000_000) == 4
    assert n_copies(1, 50_000_000) == MAX_CALLS


def row(op: str, n_tokens: int, n_latents: int, us: float, **baselines: float) -> Row:
    return Row(op, n_tokens, 1, n_latents, 4096, us, 1.0, baselines)


def test_every_target_finds_its_rows_and_tells_met_from_missed() -> None:
    def report(us: float) -> list[str]:
        rows = [
            row("idle", 1, 0, us),
            row("steer_, add + norm", 1, 0, us, **{ADD_NORM: 1.0}),
            row("steer_, add + norm", 8192, 0, us, **{ADD_NORM: 1.0}),
            *(row("steer_", t, k, us) for t in (64, 2048, 8192) for k in (16, 64)),
            *(row("steer_ for the whole SAE", t, 16, us, **{WHOLE_SAE: 110.0}) for t in (1, 8192)),
            row("encode_topk", 64, 32, us, **{GEMM: 1.0}),
            row("encode_topk", 64, 32, us, **{GEMM: 1.0})._replace(d_model=2304),
            *(row("topk_rank", 64, k, us, **{GEMM: 1.0}) for k in (16, 64)),
        ]
        assert "## topk_rank" in markdown("a GPU", 4e6, rows)
        return [target.line(rows) for target in targets(4e6)]

    assert all(line.endswith("| yes |") for line in report(1.0))
    assert all(line.endswith("| no |") for line in report(100.0))


def test_a_target_without_rows_is_not_called_met() -> None:
    assert all("not measured | | |" in target.line([]) for target in targets(4e6))


def test_the_report_names_the_worst_case() -> None:
    rows = [row("idle", 1, 0, 2.0), row("idle", 64, 0, 5.0)]
    assert "| 5 us | T 64, S 1, K 0, d 4096 | no |" in targets(4e6)[0].line(rows)
