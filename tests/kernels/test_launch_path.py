"""What launchers do around their kernels: they wait for no value, and no shape depends on one.

Either would break a CUDA graph, or cost a wait in every step. Launches are recorded, not run; torch
ops are seen by a dispatch mode. Two batches of equal shapes and other contents must leave the same
record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from op_inputs import DEVICE
from prepare_steps_inputs import random_steps
from steering_cases import make_case
from tally_steps_inputs import random_tally, tally_arguments
from torch import Tensor
from waits import Methods, Ops, described

import saif_kernels.steer as steer
from saif_kernels import DOSE_PARTS, Tally
from saif_kernels.prepare_steps import prepare_steps_triton_
from saif_kernels.tally_steps import tally_steps_triton_


@contextmanager
def recorded() -> Iterator[list[object]]:
    """Ops and launches inside, in order; fails where the host waits."""
    record: list[object] = []

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        record.append((kernel.__name__, grid, described((args, arguments))))

    with (
        mock.patch.object(type(steer._token_kernel), "run", launch),
        Methods(),
        Ops(record),
    ):
        yield record


def check(arguments_of: Callable[[int], Callable[[], None]]) -> list[object]:
    """The records of two batches, by seed, are one; it is returned."""
    records = []
    for seed in (1, 2):
        launch = arguments_of(seed)
        with recorded() as record:
            launch()
        records.append(record)
    assert records[0] == records[1]
    return records[0]


@pytest.mark.parametrize("max_dose", [None, 0.1], ids=["no-cap", "cap"])
@pytest.mark.parametrize("with_dose", [False, True], ids=["no-dose", "dose"])
@pytest.mark.parametrize(
    ("n_tokens", "d_model", "kernels"),
    [
        (5, 64, ["_token_kernel"]),
        (3, 4096, ["_partial_kernel", "_token_kernel"]),
        (70, 64, ["_tile_kernel"]),
    ],
    ids=["tokens", "split", "tiles"],
)
def test_steer(
    n_tokens: int, d_model: int, kernels: list[str], with_dose: bool, max_dose: float | None
) -> None:
    def launch_of(seed: int) -> Callable[[], None]:
        # Of the second batch nothing is steered.
        idle = 0.2 if seed == 1 else 1.1
        case = make_case(n_tokens=n_tokens, d_model=d_model, seed=seed, idle=idle).to(DEVICE)
        flat, dose = case.flat(), torch.zeros(n_tokens, DOSE_PARTS, 2, device=DEVICE)
        options = {"dose": dose if with_dose else None, "max_dose": max_dose}
        return lambda: steer.steer_triton_(*flat, **options)

    launched = [entry[0] for entry in check(launch_of) if not entry[0].startswith("aten.")]
    assert launched == kernels


@pytest.mark.parametrize("with_tally", [False, True], ids=["no-tally", "tally"])
def test_prepare_steps(with_tally: bool) -> None:
    def launch_of(seed: int) -> Callable[[], None]:
        steps = random_steps(8, 100, DEVICE, seed=seed)
        # An engine's positions do not end where those of its batch do.
        positions = steps.positions.new_zeros(100)
        positions[: len(steps.positions)] = steps.positions
        steps, tally = steps._replace(positions=positions), Tally.allocate(2, 100, 8, DEVICE)
        fresh = {"token_fresh": tally.token_fresh, "counts": tally.counts} if with_tally else {}
        return lambda: prepare_steps_triton_(*steps, **fresh)

    assert [entry[0] for entry in check(launch_of)] == ["_steps_kernel"]


def test_tally_steps() -> None:
    def launch_of(seed: int) -> Callable[[], None]:
        token_row, tally = random_tally(seed=seed, device=DEVICE)
        return lambda: tally_steps_triton_(token_row, *tally_arguments(tally))

    assert check(launch_of)[-1][0] == "_tally_kernel"


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x.any()),
    "nonzero": lambda x: x.nonzero(),
    "a-mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_each_of_these_waits_is_found(wait: Callable[[Tensor], object]) -> None:
    x = torch.ones(4, device=DEVICE)
    with pytest.raises(AssertionError, match="the host waits"), recorded():
        wait(x)


def test_a_shape_and_a_grid_of_the_batch_s_values_are_found() -> None:
    for launch_of in (
        lambda seed: lambda: torch.empty(4, device=DEVICE).new_empty(seed),
        lambda seed: lambda: steer._token_kernel[(seed,)](),
    ):
        with pytest.raises(AssertionError, match="assert"):
            check(launch_of)
