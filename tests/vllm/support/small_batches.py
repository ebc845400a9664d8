"""Batches of some requests for two sets, as a worker with one hooked layer sees them; no engine."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from saif_kernels import LatentEdits, RequestRows, SteeringBank, Tally, Window
from saif_vllm.request import Placed, SetUse
from saif_vllm.worker.batch import BatchRequest, BatchTables
from saif_vllm.worker.capture import LastTokenCapture
from saif_vllm.worker.layers import HookedLayer
from saif_vllm.worker.proof import Proof

SLOTS = {"a": 0, "b": 1}
MAX_REQUESTS, MAX_TOKENS, LAYER, D_MODEL = 3, 32, 7, 4
_SERIALS = itertools.count()


def make_tables(warn_dose: float | None = None, captures: bool = False) -> BatchTables:
    """Make tables for batches of some requests, and one hooked layer."""
    proof = Proof(Tally.allocate(1, MAX_TOKENS, MAX_REQUESTS, "cpu"), [LAYER], warn_dose)
    capture = LastTokenCapture(1, 4, D_MODEL, torch.float32, "cpu") if captures else None
    return BatchTables(RequestRows.allocate(MAX_REQUESTS, 2, "cpu"), proof, MAX_TOKENS, capture)


def asking(*sets: str, **window: Any) -> Placed:
    """Make what a request for these sets carries."""
    uses = tuple(SetUse(name, name * 64, 1.0 + i, changes_kv=False) for i, name in enumerate(sets))
    name, serial = "+".join(sets), next(_SERIALS)
    slots = tuple(SLOTS[name] for name in sets)
    return Placed(uses, Window(**window), request_id=name, serial=serial, slots=slots)


A, B, BOTH = asking("a"), asking("b"), asking("a", "b")
_RUNNING: dict[tuple[str, int, int], BatchRequest] = {}


def _request(name: str, asked: Placed | None, prompt_len: int) -> BatchRequest:
    """Return one object per request, as the patches of the model runners do."""
    new = BatchRequest(asked, prompt_len)
    return _RUNNING.setdefault((name, id(asked), prompt_len), new)


def run(
    tables: BatchTables,
    *batch: tuple[str, Placed | None, int, range],
    forward: bool = True,
) -> None:
    """Run one step of requests: (id, what it asks for, prompt length, positions) each.

    Its forward steers by nothing; without one, the step is not finished.
    """
    lengths = [len(positions) for *_, positions in batch]
    tables.begin_step(
        requests=[_request(name, asked, prompt_len) for name, asked, prompt_len, _ in batch],
        query_start_loc=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        positions=torch.tensor([p for *_, positions in batch for p in positions]),
        n_tokens=sum(lengths),
    )
    if forward:
        steered = tables.token_row[: sum(lengths)] >= 0
        tables.proof.tally.dose[:, : sum(lengths), 0][:, steered] = torch.tensor([0.0, 1.0])
        tables.finish_step()


def slots(tables: BatchTables) -> list[list[int]]:
    """Return the set slots of each token, as the kernel will see them."""
    found = []
    for row, scale in zip(tables.token_row.tolist(), tables.token_scale.tolist(), strict=True):
        used = tables.rows.set_slot[row].tolist() if row >= 0 and scale else []
        found.append([slot for slot in used if slot >= 0])
    return found


def rest(n: int) -> list[list[int]]:
    """Return the slots of all tokens from the ``n``-th on, which are unsteered."""
    return [[]] * (MAX_TOKENS - n)


def hooked_layer(
    tables: BatchTables, value: float = 1.0, max_dose: float | None = None
) -> HookedLayer:
    """Make a layer whose set in slot 0 adds ``value`` to each channel."""
    bank = SteeringBank.allocate(D_MODEL, 2, 1, torch.float32, "cpu")
    bank.write_set(0, 0, LatentEdits.empty(D_MODEL)._replace(vector=torch.full((D_MODEL,), value)))
    return HookedLayer(bank, tables, 0, max_dose)
