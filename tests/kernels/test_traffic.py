"""The traffic model against the bytes that the kernels ask for, counted in the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from saif_kernels import RequestRows, SteeringBank
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm_triton
from saif_kernels.encode.topk import MOST_TOKENS, encode_topk_triton
from saif_kernels.steer import steer_triton_

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parent))
from op_inputs import DEVICE
from steering_cases import Case, random_edits
from traffic import encode_traffic, rms_norm_traffic, set_of, steer_traffic

pytestmark = [
    pytest.mark.extended,  # half a minute
    pytest.mark.skipif(DEVICE != "cpu", reason="counts loads in Triton's interpreter"),
]


@contextmanager
def counted(*tables: Tensor | None) -> Iterator[list[int]]:
    """Bytes of each load and store within these tensors, while the interpreter runs."""
    from triton.runtime import interpreter

    sizes: list[int] = []
    memory = interpreter._interpreter
    spans = [(t.data_ptr(), t.data_ptr() + t.nbytes, t.itemsize) for t in tables if t is not None]

    def count(pointers: np.ndarray, mask: np.ndarray) -> None:
        for first, end, itemsize in spans:
            inside = (pointers >= first) & (pointers < end) & mask
            sizes.append(int(inside.sum()) * itemsize)

    def load(pointers: np.ndarray, mask: np.ndarray, *rest: object) -> object:
        count(pointers, mask)
        return memory.load(pointers, mask, *rest)

    def store(pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> object:
        count(pointers, mask)
        return memory.store(pointers, values, mask)

    spy = mock.Mock(wraps=memory, load=load, store=store)
    with mock.patch.object(interpreter, "_interpreter", spy):
        yield sizes


def steered(n_tokens: int, n_sets: int, n_latents: int, d_model: int) -> Case:
    """A batch as ``steer_traffic`` describes it."""
    generator = torch.Generator().manual_seed(0)
    bank = SteeringBank.allocate(d_model, n_sets, n_sets * n_latents, torch.float32, "cpu")
    rows = RequestRows.allocate(n_sets, 1, "cpu")
    for slot in range(n_sets):
        edits = random_edits(d_model, ["clamp"] * n_latents, generator)
        bank.write_set(slot, slot * n_latents, edits)
        rows.write_row(slot, [(slot, 1.0)], prompt_len=1)
    hidden, residual = torch.randn(2, n_tokens, d_model, generator=generator)
    token_row = torch.tensor([set_of(t, n_tokens, n_sets) for t in range(n_tokens)]).int()
    return Case(hidden, residual, bank, rows, token_row, torch.ones(n_tokens))


@pytest.mark.parametrize("n_latents", [0, 1, 15], ids=lambda k: f"{k}-latents")
@pytest.mark.parametrize(
    ("n_tokens", "n_sets", "d_model"),
    [(5, 1, 64), (5, 3, 64), (3, 2, 2304), (67, 1, 64), (96, 2, 64), (70, 3, 64), (66, 66, 64)],
    ids=["few", "few-mixed", "few-split", "tiles", "two-sets", "three-sets", "all-mixed"],
)
def test_steer_asks_for_what_the_model_says(
    n_tokens: int, n_sets: int, d_model: int, n_latents: int
) -> None:
    case = steered(n_tokens, n_sets, n_latents, d_model)
    bank = case.bank
    with counted(case.hidden, case.residual, bank.W_enc, bank.W_dec, bank.vector) as sizes:
        steer_triton_(*case.flat())
    model = steer_traffic(n_tokens, n_sets, n_latents, d_model, case.hidden.itemsize)
    scratch = model.l2 - sum(sizes)  # the split's partial sums are no row
    assert scratch == (3 * n_latents * 4 * 5 * 4 if d_model == 2304 else 0)
    assert model.floor <= model.hbm <= model.l2


@pytest.mark.parametrize("n_latents", [0, 3], ids=lambda k: f"{k}-latents")
def test_the_fused_norm_asks_for_what_the_model_says(n_latents: int) -> None:
    case = steered(5, 2, n_latents, 64)
    bank, weight = case.bank, torch.ones(64)
    tables = (case.hidden, case.residual, weight, bank.W_enc, bank.W_dec, bank.vector)
    with counted(*tables) as sizes:
        normed = add_steer_rms_norm_triton(*case[:2], weight, 1e-6, False, *case.flat()[2:])
    model = rms_norm_traffic(5, 2, n_latents, 64, case.hidden.itemsize)
    assert sum(sizes) + normed.nbytes == model.l2
    assert model.floor <= model.l2


@pytest.mark.parametrize("n_tokens", [1, 40, 70])
def test_an_encode_asks_for_what_the_model_says(n_tokens: int) -> None:
    d_model, d_sae = 48, 200
    x, W_enc = torch.randn(n_tokens, d_model), torch.randn(d_model, d_sae)
    with counted(x, W_enc) as sizes:
        encode_topk_triton(x, W_enc, torch.zeros(d_sae), None, 1)
    assert sum(sizes) == encode_traffic(n_tokens, d_sae, d_model, x.dtype, MOST_TOKENS).l2


def test_a_reread_that_leaves_the_cache_counts_as_memory_traffic() -> None:
    small, large = (steer_traffic(t, 1, 16, 4096, 2) for t in (1024, 8192))
    assert small.hbm == small.floor
    assert large.hbm == large.floor + 8192 * 4096 * 2
