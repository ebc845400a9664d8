"""steer_ on a GPU: its floor, add + RMSNorm, unfused torch, and a hook around a whole SAE."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from device_timing import Loop, n_copies
from gpu_report import ADD_NORM, WHOLE_SAE
from steer_inputs import (
    EPSILON,
    SteerInputs,
    WholeSae,
    add_rms_norm,
    copies,
    gate,
    relative_error,
    sets_of_clamps,
    steer_inputs,
    unfused,
)
from torch import Tensor
from traffic import rms_norm_traffic, steer_traffic

from saif_kernels import add_steer_rms_norm, steer_

TOKENS = (1, 16, 64, 256, 1024, 4096, 8192)
D_SAE = 65536
N_LAYERS = 32

# Tokens vary fastest: the sets, which take longest to make, stay.
CASES = [
    (t, s, k, d)
    for d, k, s, t in product((2304, 4096, 8192), (0, 1, 16, 64), (1, 16, 256), TOKENS)
    if s <= t
]

sets = lru_cache(maxsize=1)(sets_of_clamps)
compiled_add_rms_norm = torch.compile(add_rms_norm)


@pytest.fixture(scope="module")
def l2_bytes() -> int:
    return torch.cuda.get_device_properties().L2_cache_size


@pytest.mark.parametrize(("t", "s", "k", "d"), CASES)
def test_steer(measure, l2_bytes: int, t: int, s: int, k: int, d: int) -> None:
    inputs = steer_inputs(t, sets(s, k, d))
    gate(inputs)
    traffic = steer_traffic(t, s, k, d, 2)
    rotated = copies(inputs, n_copies(traffic.floor, l2_bytes))
    by_hand = Loop(lambda *arguments: unfused(SteerInputs(*arguments), k), rotated)
    measure(
        "steer_",
        (t, s, k, d),
        Loop(steer_, rotated),
        floor_bytes=traffic.floor,
        baselines={"unfused torch": by_hand},
    )


# One set of 16 live latents for add_steer_rms_norm's sake, of constants any number of sets.
NORM_CASES = [
    (*case, fused)
    for case in CASES
    for fused in (False, True)
    if case[1:3] in ((1, 0), (1, 16)) or (case[2] == 0 and not fused)
]


@pytest.mark.parametrize(("t", "s", "k", "d", "fused"), NORM_CASES)
def test_before_the_norm(
    measure, l2_bytes: int, t: int, s: int, k: int, d: int, fused: bool
) -> None:
    inputs = steer_inputs(t, sets(s, k, d))
    gate(inputs)
    weight = torch.randn(d, dtype=torch.bfloat16, device="cuda")
    for stream in (inputs.hidden, inputs.residual):
        torch._dynamo.mark_static(stream, 1)
        if t > 1:  # one kernel for any number of tokens, as vLLM has it
            torch._dynamo.mark_dynamic(stream, 0)
    torch._dynamo.mark_static(weight, 0)
    compiled_add_rms_norm(inputs.hidden, inputs.residual, weight)

    def norm_alone(hidden: Tensor, residual: Tensor, *_: object) -> Tensor:
        return compiled_add_rms_norm(hidden, residual, weight)

    def two_kernels(*arguments: Any) -> Tensor:
        steer_(*arguments)
        return norm_alone(*arguments)

    def one_kernel(hidden: Tensor, residual: Tensor, *steering: Any) -> Tensor:
        return add_steer_rms_norm(hidden, residual, weight, EPSILON, *steering)

    expected = add_rms_norm(inputs.reference(), inputs.residual, weight)
    [copy] = copies(inputs, 1)
    call = one_kernel if fused else two_kernels
    assert relative_error(call(*copy), expected) < 2**-6  # each rounds twice

    # The norm reads the stream and the weight, and writes as many rows.
    norm_bytes = 3 * inputs.hidden.nbytes + weight.nbytes
    if fused:
        floor = rms_norm_traffic(t, s, k, d, 2).floor
    else:
        floor = steer_traffic(t, s, k, d, 2).floor + norm_bytes
    rotated = copies(inputs, n_copies(norm_bytes, l2_bytes))
    measure(
        "add_steer_rms_norm" if fused else "steer_, add + norm",
        (t, s, k, d),
        Loop(call, rotated),
        floor_bytes=floor,
        baselines={ADD_NORM: Loop(norm_alone, rotated)},
    )


@pytest.mark.parametrize("n_sites", [1, N_LAYERS])
@pytest.mark.parametrize("d", [2304, 4096, 8192])
@pytest.mark.parametrize("t", [1, 64, 1024, 8192])
def test_idle(measure, t: int, d: int, n_sites: int) -> None:
    sites = copies(steer_inputs(t, sets(1, 16, d), idle=True), N_LAYERS)
    before = sites[0].hidden.clone()

    def all_sites() -> None:
        for site in sites:
            steer_(*site)

    if n_sites == 1:
        measure("idle", (t, 1, 0, d), Loop(steer_, sites))
    else:
        measure(f"idle, {n_sites} layers", (t, 1, 0, d), Loop(all_sites, [()] * 8))
    assert torch.equal(sites[0].hidden, before)


@pytest.mark.parametrize("t", [1, 64, 8192])
def test_against_a_hook_around_the_whole_sae(measure, l2_bytes: int, t: int) -> None:
    k, d = 16, 4096
    sae = WholeSae(d, D_SAE, k, torch.bfloat16, "cuda")
    inputs = steer_inputs(t, sae.chosen_set())
    steered = inputs.hidden.clone()
    steer_(steered, *inputs[1:])
    x = inputs.hidden + inputs.residual
    assert relative_error(steered + inputs.residual, sae(x)) < 2**-4  # the hook rounds five times
    floor = steer_traffic(t, 1, k, d, 2).floor
    rotated = copies(inputs, n_copies(floor, l2_bytes))
    hook = Loop(sae, [(x.clone(),) for _ in range(4)])
    measure(
        "steer_ for the whole SAE",
        (t, 1, k, d),
        Loop(steer_, rotated),
        floor_bytes=floor,
        baselines={WHOLE_SAE: hook},
    )
