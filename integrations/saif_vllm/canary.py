"""The start-up canary: proof, before the first request, that a hook reaches the model's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saif_kernels import LatentEdits, Window
from saif_vllm.tables import Steering

# Far above the residual stream's usual entries, far below fp16's largest number.
_STRENGTH = 64.0
# A change of the output below this part of it could be noise.
_LEAST_CHANGE = 1e-2
_N_TOKENS = 16


def check(steering: Steering, runner: Any) -> None:
    """Run the engine's own dummy batches with and without a canary at each hooked layer.

    Decode-sized and prefill-sized, so a captured graph is replayed where there is one. The canary
    is gone afterwards.

    Raises:
        RuntimeError: at some layer the counter of steered tokens or the output did not move.
    """
    for decode in (True, False):
        plain, again = (_forward(runner, decode) for _ in range(2))
        for layer, tables in steering.tables.items():
            n_before = int(tables.n_steered)
            output = _with_canary(steering, tables.bank, runner, decode)
            kind = "decode" if decode else "prefill"
            if int(tables.n_steered) <= n_before:
                raise RuntimeError(
                    f"start-up canary: layer {layer} steered no token of a {kind} batch; "
                    "its hook is not in the model that runs"
                )
            # Pipeline ranks before the last have no output of their own.
            if isinstance(output, Tensor) and not _moved(plain, again, output):
                raise RuntimeError(
                    f"start-up canary: steering layer {layer} did not change the output of a "
                    f"{kind} batch"
                )


def _with_canary(steering: Steering, bank: Any, runner: Any, decode: bool) -> Any:
    step, slot = steering.step, steering.canary_slot
    d_model = bank.vector.shape[1]
    # Alternating signs: no norm divides it away, as it would a multiple of the stream itself.
    vector = torch.full((d_model,), _STRENGTH)
    vector[::2] *= -1
    bank.write(slot, 0, LatentEdits.empty(d_model)._replace(vector=vector))
    step.rows.write(step.canary_row, [(slot, 1.0)], prompt_len=1, window=Window())
    step.force_row(step.canary_row)
    output = _forward(runner, decode)
    step.force_row(None)
    step.rows.clear(step.canary_row)
    bank.clear(slot)
    return output


def _forward(runner: Any, decode: bool) -> Any:
    if decode:
        # What a decode step of one request runs, drafts included.
        n_tokens = getattr(runner, "uniform_decode_query_len", None) or runner.decode_query_len
    elif hasattr(runner, "model_state"):
        # V2 makes requests of one token, a decode batch again, as long as there are enough.
        n_tokens = min(runner.max_num_reqs + 1, runner.max_num_tokens)
    else:
        n_tokens = min(_N_TOKENS, runner.max_num_tokens)
    options = {} if hasattr(runner, "model_state") else {"force_attention": True}
    output = runner._dummy_run(n_tokens, uniform_decode=decode, skip_eplb=True, **options)[0]
    # A graph's output buffer is overwritten by the next replay.
    return output.float().clone() if isinstance(output, Tensor) else output


def _moved(plain: Tensor, again: Tensor, steered: Tensor) -> bool:
    noise = (again - plain).norm()
    return bool((steered - plain).norm() > 10 * noise + _LEAST_CHANGE * plain.norm())
