"""A hooked layer steers from its own bank and leaves its dose; all tables are known by name."""

from __future__ import annotations

import torch
from small_batches import D_MODEL, A, hooked_layer, make_tables, run

from saif_fast.banks import HookedModel, LayerBanks
from saif_kernels import RequestRows, Tally
from saif_vllm.worker.batch import BatchTables
from saif_vllm.worker.layers import WorkerSteering
from saif_vllm.worker.proof import Proof

HOOKED = HookedModel((1, 4, 6), D_MODEL, 8, torch.float32)


def test_a_layer_steers_its_tokens_and_leaves_their_dose() -> None:
    tables = make_tables()
    layer = hooked_layer(tables, 3.0)
    run(tables, ("x", A, 1, range(2)), ("plain", None, 1, range(1)), forward=False)
    hidden, residual = torch.zeros(3, D_MODEL), torch.full((3, D_MODEL), 2.0)
    layer.steer(hidden, residual)
    assert hidden.tolist() == [[3.0] * D_MODEL] * 2 + [[0.0] * D_MODEL]
    sums = tables.proof.tally.dose[0, :3, 0]  # of change**2 and x**2
    assert sums.tolist() == [[36.0, 16.0]] * 2 + [[-1.0, -1.0]]


def test_a_change_is_cut_down_to_the_layers_bound() -> None:
    tables = make_tables()
    layer = hooked_layer(tables, 3.0, max_dose=0.5)
    run(tables, ("x", A, 1, range(1)), forward=False)
    hidden = torch.full((1, D_MODEL), 2.0)
    layer.steer(hidden, None)
    torch.testing.assert_close(hidden, torch.full((1, D_MODEL), 3.0))


def test_what_is_captured_is_the_stream_before_steering() -> None:
    tables = make_tables(captures=True)
    layer, seen = hooked_layer(tables, 3.0), []
    assert tables.capture is not None
    tables.capture.keep = lambda index, hidden, residual: seen.append((index, hidden.clone()))  # type: ignore[method-assign]
    run(tables, ("x", A, 1, range(1)), forward=False)
    layer.steer(torch.ones(1, D_MODEL), None)
    ((index, hidden),) = seen
    assert index == 0 and torch.equal(hidden, torch.ones(1, D_MODEL))


def test_a_rank_has_the_layers_that_it_owns_and_counts_their_memory() -> None:
    owned = (4, 6)
    banks = LayerBanks(HOOKED, max_sets=2, max_latents=5, device="cpu", owned=owned)
    tally = Tally.allocate(len(owned), max_tokens=3, max_requests=2, device="cpu")
    rows = RequestRows.allocate(2, 1, "cpu")
    steering = WorkerSteering(banks, BatchTables(rows, Proof(tally, owned, None), 3), None)
    assert {layer: hooked.index for layer, hooked in steering.layers.items()} == {4: 0, 6: 1}
    for layer, hooked in steering.layers.items():
        assert hooked.bank is banks.banks[layer]
        assert hooked.dose.data_ptr() == tally.dose[hooked.index].data_ptr()
    tensors = steering.tensors()
    for name, table in (
        ("layers.6.gated", banks.banks[6].gated),
        ("layers.4.vector_norm", banks.banks[4].vector_norm),
        ("request_rows", rows.table),
        ("token_scale", steering.batch.token_scale),
        ("dose", tally.dose),
    ):
        assert tensors[name] is table
    assert not any(name.startswith("layers.1.") for name in tensors)
    assert steering.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())
