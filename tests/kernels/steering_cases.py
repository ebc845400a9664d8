"""One generator of inputs for all uses of the steering op, and the change that is specified."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from saif_kernels import LatentEdits, RequestRows, SteeringBank
from saif_kernels._steer_cpu import steer_cpu_
from saif_kernels.steer import steer_blocks, steer_reference_, steer_triton_

OPS: dict[str, Callable[..., None]] = {
    "specification": steer_reference_,
    "cpu": steer_cpu_,
    "kernel": steer_triton_,
}
FEW, MANY = "token-a-program", "tiles"  # values of the fixture ``regime``
NEAR = 1e-4  # of a threshold: there, the order of an fp32 sum may decide

# (p, q, lo, gated) of every edit kind, with values of the size of an activation.
EDITS = {
    "add": (1.5, 0.0, -math.inf, False),
    "add@gated": (1.5, 0.0, -math.inf, True),
    "clamp": (2.0, -1.0, -math.inf, False),
    "clamp@gated": (2.0, -1.0, -math.inf, True),
    "at_least": (2.0, -1.0, 0.0, False),
    "scale": (0.0, 1.5, -math.inf, False),
    "ablate": (0.0, -1.0, -math.inf, False),
}


class Case(NamedTuple):
    """Inputs of one call."""

    hidden: Tensor
    residual: Tensor | None
    bank: SteeringBank
    rows: RequestRows
    token_row: Tensor
    token_scale: Tensor

    def to(self, device: str) -> Case:
        """The same inputs on ``device``."""
        return Case(
            self.hidden.to(device),
            None if self.residual is None else self.residual.to(device),
            SteeringBank(*(table.to(device) for table in self.bank)),
            RequestRows(self.rows.table.to(device)),
            self.token_row.to(device),
            self.token_scale.to(device),
        )

    def flat(self) -> tuple[object, ...]:
        """The arguments of ``torch.ops.saif.steer_``."""
        rows = self.rows
        return (*self[:2], *self.bank, rows.set_slot, rows.strength, *self[4:])


def random_edits(d_model: int, kinds: list[str], generator: torch.Generator) -> LatentEdits:
    """Live latents of the given kinds over unit-scale rows, plus a dense vector."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    k = len(kinds)
    p, q, lo, gated = zip(*(EDITS[kind] for kind in kinds), strict=True) if k else ((),) * 4
    return LatentEdits(
        W_enc=normal(k, d_model) / d_model**0.5,
        b_enc=normal(k) / 4,
        threshold=normal(k).abs() / 4,
        W_dec=normal(k, d_model) / d_model**0.5,
        p=torch.tensor(p),
        q=torch.tensor(q),
        lo=torch.tensor(lo),
        gated=torch.tensor(gated, dtype=torch.bool),
        vector=normal(d_model) / 4,
    )


def make_case(
    *,
    n_tokens: int,
    d_model: int = 64,
    dtype: torch.dtype = torch.float32,
    latents: tuple[int, ...] = (0, 1, 15),
    max_pairs: int = 3,
    n_requests: int = 4,
    with_residual: bool = True,
    one_combination: bool = False,
    idle: float = 0.2,
    seed: int = 0,
) -> Case:
    """Random requests over random sets; some tokens have no row.

    ``one_combination``: all requests use the same sets, with strengths of their own. ``idle``:
    share of the tokens of scale 0.
    """
    generator = torch.Generator().manual_seed(seed)
    bank = SteeringBank.allocate(d_model, len(latents), sum(latents), dtype, "cpu")
    kinds, offset = list(EDITS), 0
    for slot, k in enumerate(latents):
        chosen = [kinds[i % len(kinds)] for i in range(k)]
        bank.write_set(slot, offset, random_edits(d_model, chosen, generator))
        offset += k
    rows = RequestRows.allocate(n_requests, max_pairs, "cpu")
    combination = torch.randperm(len(latents), generator=generator)[:max_pairs]
    for row in range(n_requests):
        slots = torch.randperm(len(latents), generator=generator)[: 1 + row % max_pairs]
        if one_combination:
            slots = combination
        strengths = torch.randn(len(slots), generator=generator)
        pairs = list(zip(slots.tolist(), strengths.tolist(), strict=True))
        rows.write_row(row, pairs, prompt_len=1)
    token_row = torch.randint(-1, n_requests, (n_tokens,), generator=generator).int()
    token_scale = torch.rand(n_tokens, generator=generator)
    token_scale[torch.rand(n_tokens, generator=generator) < idle] = 0.0
    hidden = torch.randn(n_tokens, d_model, generator=generator).to(dtype)
    residual = torch.randn(n_tokens, d_model, generator=generator).to(dtype)
    return Case(hidden, residual if with_residual else None, bank, rows, token_row, token_scale)


def in_float64(case: Case) -> Tensor:
    """The specification's change [T, d_model] in float64, before it is rounded."""
    device, case = case.hidden.device, case.to("cpu")
    x = (case.hidden if case.residual is None else case.hidden + case.residual).double()
    bank = SteeringBank(*(t.double() if t.is_floating_point() else t for t in case.bank))
    steered = x.clone()
    tables = case._replace(bank=bank).flat()[2:]
    steer_reference_(steered, None, *tables)
    return (steered - x).to(device)


def near_threshold(case: Case, epsilon: float = NEAR) -> Tensor:
    """[T]: a latent of the token's sets has a pre-activation within epsilon of its threshold."""
    bank, rows = case.bank, case.rows
    x = (case.hidden if case.residual is None else case.hidden + case.residual).double()
    pre = x @ bank.W_enc.double().T + bank.b_enc
    i = torch.arange(len(bank.b_enc), device=x.device)
    first, n_latents = bank.offset[:, None], bank.n_latents[:, None]
    of_set = (first <= i) & (i < first + n_latents)  # [S, P]
    of_request = (of_set[rows.set_slot.long()] & (rows.set_slot >= 0)[..., None]).any(1)  # [N, P]
    near = (pre - bank.threshold).abs() < epsilon  # [T, P]
    steered = (case.token_row >= 0) & (case.token_scale != 0)
    return (near & of_request[case.token_row.long()]).any(1) & steered


def n_parts(op: Callable[..., None], hidden: Tensor) -> int:
    """Parts of the dose that ``op`` writes of a token."""
    if op is steer_reference_:
        return 1
    return steer_blocks(*hidden.shape, hidden.itemsize).n_parts


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, between NaNs that no kernel may read or write."""
    n_tokens, d_model = x.shape
    if layout == "contiguous":
        return x.clone()
    if layout == "strided":
        buffer = x.new_full((n_tokens, 2, d_model), torch.nan)[:, 1]
    else:
        buffer = x.new_full((n_tokens + 5, d_model + 8), torch.nan)[2 : 2 + n_tokens, :d_model]
    return buffer.copy_(x)


def pairwise_by_regime(factors: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Parameters ("factors", "regime") that hold every pair of values, regimes among them."""
    return [
        pytest.param(case, regime, id="-".join(str(value) for value in (*case.values(), regime)))
        for case in pairwise({**factors, "regime": [FEW, MANY]})
        for regime in [case.pop("regime")]
    ]
