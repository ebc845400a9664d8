"""One input generator for each registered op, shared by tests, opcheck, the AOT report and bench.

``OPS[name](...)`` returns the arguments of ``torch.ops.saif.<name>``; ``test_registration.py``
fails when an op has none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from encode_inputs import moments_arguments, rank_arguments, topk_arguments
from prepare_steps_inputs import random_steps
from steering_cases import make_case
from tally_steps_inputs import random_tally, tally_arguments

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _add_steer_rms_norm(
    n_tokens: int = 9, *, gemma: bool = False, **case: Any
) -> tuple[object, ...]:
    inputs = make_case(n_tokens=n_tokens, **case).to(DEVICE)
    weight = torch.linspace(-1.0, 1.0, inputs.hidden.shape[1]).to(inputs.hidden)
    hidden, residual, *tables = inputs.flat()
    return hidden, residual, weight, 1e-6, gemma, *tables


def _tally_steps(**step: Any) -> tuple[object, ...]:
    token_row, tally = random_tally(**step, device=DEVICE)
    return token_row, *tally_arguments(tally)


OPS: dict[str, Callable[..., tuple[object, ...]]] = {
    "encode_moments": lambda **case: moments_arguments(**case, device=DEVICE),
    "encode_topk": lambda **case: topk_arguments(**case, device=DEVICE),
    "add_steer_rms_norm": _add_steer_rms_norm,
    "prepare_steps_": lambda **batch: random_steps(**batch, device=DEVICE),
    "steer_": lambda n_tokens=9, **case: make_case(n_tokens=n_tokens, **case).to(DEVICE).flat(),
    "tally_steps_": _tally_steps,
    "topk_rank": lambda **case: rank_arguments(**case, device=DEVICE),
}
