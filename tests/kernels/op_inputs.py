"""One input generator for each registered op, shared by tests, opcheck, the AOT report and bench.

``OPS[name](...)`` returns the arguments of ``torch.ops.saif.<name>``; ``test_registration.py``
fails when an op has none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from steering_cases import make_case
from steps_inputs import random_steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


OPS: dict[str, Callable[..., tuple[object, ...]]] = {
    "prepare_steps_": lambda **batch: random_steps(**batch, device=DEVICE),
    "steer_": lambda n_tokens=9, **case: make_case(n_tokens=n_tokens, **case).to(DEVICE).flat(),
}
