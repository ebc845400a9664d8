"""The start-up canary: proof, before the first request, that a hook reaches the model's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saif_fast.latent_set import LatentSet
from saif_fast.slots import Placement
from saif_kernels import LatentEdits, Window
from saif_vllm.steering import Steering

# Of each channel: far above the residual stream's usual entries, far below fp16's largest number.
_STRENGTH = 64.0
# A change of the output below this part of it could be noise.
_LEAST_CHANGE = 1e-2
_N_TOKENS = 16
_SLOT = _ROW = 0  # nothing is loaded yet, and no request runs


def check(steering: Steering, runner: Any) -> None:
    """Run the engine's own dummy batches with and without a canary at each hooked layer.

    Decode-sized and prefill-sized, so a captured graph is replayed where there is one; with a
    constant and with a live latent. The canary is gone afterwards.

    Raises:
        RuntimeError: at some layer the evidence of steered tokens or the output did not move.
    """
    for decode in (True, False):
        plain, again = (_forward(runner, decode) for _ in range(2))
        for layer, tables in steering.layers.items():
            for kind, edits in _canaries(tables.bank.vector.shape[1]).items():
                batch = f"a {'decode' if decode else 'prefill'} batch"
                tables.dose.fill_(-1)
                output = _with_canary(steering, layer, edits, runner, decode)
                if (tables.dose[:, 0, 0] < 0).all():
                    raise RuntimeError(
                        f"start-up canary: layer {layer} steered no token of {batch}; "
                        "its hook is not in the model that runs"
                    )
                # Pipeline ranks before the last have no output of their own.
                least = _LEAST_CHANGE * min(1.0, tables.max_dose or 1.0)
                if isinstance(output, Tensor) and not _moved(plain, again, output, least):
                    raise RuntimeError(
                        f"start-up canary: {kind} at layer {layer} did not change the output of "
                        f"{batch}"
                    )
    for tables in steering.layers.values():
        tables.dose.fill_(-1)


def _canaries(d_model: int) -> dict[str, LatentEdits]:
    # Alternating signs: no norm divides it away, as it would a multiple of the stream itself.
    vector = torch.full((d_model,), _STRENGTH)
    vector[::2] *= -1
    sets = {
        "a vector": LatentSet.from_vector(vector, layer=0, num_layers=1),
        "a live latent": LatentSet.from_direction(
            vector, vector.norm().item(), layer=0, num_layers=1
        ),
    }
    return {kind: latent_set.compile(0) for kind, latent_set in sets.items()}


def _with_canary(
    steering: Steering, layer: int, edits: LatentEdits, runner: Any, decode: bool
) -> Any:
    step, place = steering.step, Placement(_SLOT, {layer: 0})
    steering.write(place, {layer: edits})
    step.rows.write(_ROW, [(_SLOT, 1.0)], prompt_len=1, window=Window())
    step.force_row(_ROW)
    output = _forward(runner, decode)
    step.force_row(None)
    step.rows.clear(_ROW)
    steering.write(place, {})
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


def _moved(plain: Tensor, again: Tensor, steered: Tensor, least: float) -> bool:
    noise = (again - plain).norm()
    return bool((steered - plain).norm() > 10 * noise + least * plain.norm())
