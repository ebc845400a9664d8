"""The start-up canary: proof, before the first request, that a hook reaches the model's output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from saif_fast.latent_set import LatentSet
from saif_fast.slots import Placement
from saif_kernels import LatentEdits, Window
from saif_kernels._triton import compiles_in_time
from saif_kernels.steer import FEW_TOKENS
from saif_vllm.request import SetUse, Steered
from saif_vllm.worker.layers import LayerSteering, Steering
from saif_vllm.worker.step import BatchRequest

# Of each channel: far above the residual stream's usual entries, far below fp16's largest number.
_STRENGTH = 64.0
# A change of the output below this part of it could be noise.
_LEAST_CHANGE = 1e-2
_N_TOKENS = 16
_SLOT = 0  # nothing is loaded yet


class _Batch(NamedTuple):
    """A dummy batch."""

    n_tokens: int
    decode: bool

    def __str__(self) -> str:
        return f"a {'decode' if self.decode else 'prefill'} batch of size {self.n_tokens}"


def check(steering: Steering, runner: Any) -> None:
    """Run the engine's own dummy batches with and without a canary at each hooked layer.

    Of all sizes that are run in another way, by a model runner or by our kernels; with a constant
    and with a live latent. What a steered step needs has been compiled afterwards, and the canary
    is gone.

    Raises:
        RuntimeError: at some layer the evidence of steered tokens or the output did not move.
    """
    with compiles_in_time(), _of_tokens(runner):
        for batch in _batches(runner):
            plain, again = (_forward(runner, batch) for _ in range(2))
            if isinstance(plain, Tensor):  # drafts may have taken some tokens' place
                batch = batch._replace(n_tokens=min(batch.n_tokens, len(plain)))
            own = slice(batch.n_tokens)  # and not what a graph is padded with
            for layer, tables in steering.layers.items():
                for kind, edits in _canaries(tables.bank.vector.shape[1]).items():
                    output = _with_canary(steering, layer, edits, runner, batch)
                    # Pipeline ranks before the last have no output of their own.
                    least = _LEAST_CHANGE * min(1.0, tables.max_dose or 1.0)
                    if isinstance(output, Tensor) and not _moved(
                        plain[own], again[own], output[own], least
                    ):
                        raise RuntimeError(
                            f"start-up canary: {kind} at layer {layer} did not change the output "
                            f"of {batch}"
                        )


def _batches(runner: Any) -> Iterator[_Batch]:
    """Few tokens and many, each captured in a graph where there are graphs, and beyond the largest.

    As far as such batches can come up: where a batch has no more than ``FEW_TOKENS``, there are few
    only.
    """
    is_v2 = hasattr(runner, "model_state")
    # What a decode step of one request runs, drafts included.
    query = getattr(runner, "uniform_decode_query_len", None) or runner.decode_query_len
    yield _Batch(query, decode=True)
    n_requests = FEW_TOKENS // query + 1
    if n_requests <= runner.max_num_reqs and n_requests * query <= runner.max_num_tokens:
        yield _Batch(n_requests * query, decode=True)
    # V2 makes requests of one token, a decode batch again, as long as there are enough. V1 gives
    # each request the length of the batch.
    least = runner.max_num_reqs + 1 if is_v2 else 1
    most = runner.max_num_tokens if is_v2 else min(runner.max_num_tokens, runner.max_model_len)
    captured = runner.vllm_config.compilation_config.cudagraph_capture_sizes or ()
    sizes = (_N_TOKENS, FEW_TOKENS + 1, max((FEW_TOKENS, *captured)) + 1)
    for n_tokens in sorted({min(max(n, least), most) for n in sizes}):
        yield _Batch(n_tokens, decode=False)


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
    steering: Steering, layer: int, edits: LatentEdits, runner: Any, batch: _Batch
) -> Any:
    step, place = steering.step, Placement(_SLOT, {layer: 0})
    steering.write(place, {layer: edits})
    use = SetUse("canary", "", 1.0, changes_kv=False, slot=_SLOT)
    capture = -1 if step.capture is None else 0
    steered = Steered((use,), Window(prompt=True), capture, request_id="canary")
    with step.rehearsal(BatchRequest(steered, prompt_len=batch.n_tokens), batch.n_tokens):
        output = _forward(runner, batch)
        _check_evidence(steering.layers[layer], layer, batch)
    if step.capture is not None:
        step.capture.store[:, capture].zero_()
    steering.write(place, {})
    return output


def _check_evidence(tables: LayerSteering, layer: int, batch: _Batch) -> None:
    n_missed = int((tables.dose[: batch.n_tokens, 0, 0] < 0).sum())
    if n_missed:
        n_steered = batch.n_tokens - n_missed
        steered = f"{n_steered} tokens" if n_steered else "no token"
        raise RuntimeError(
            f"start-up canary: layer {layer} steered {steered} of {batch}; "
            "its hook is not in the model that runs"
        )


def _forward(runner: Any, batch: _Batch) -> Any:
    options = {} if hasattr(runner, "model_state") else {"force_attention": True}
    output = runner._dummy_run(
        batch.n_tokens, uniform_decode=batch.decode, skip_eplb=True, **options
    )[0]
    # A graph's output buffer is overwritten by the next replay.
    return output.float().clone() if isinstance(output, Tensor) else output


@contextmanager
def _of_tokens(runner: Any) -> Iterator[None]:
    """Dummy batches inside are of tokens, and of various ones.

    vLLM marks all of theirs as padding, for which a mixture of experts does nothing: its output is
    then what the memory held before, with a canary or without. And all are token 0, whose embedding
    may be 0: of a stream of length 0 no change is short enough.
    """
    if hasattr(runner, "model_state"):
        prepare = runner.model_state.prepare_inputs

        def prepare_inputs(input_batch: Any, req_states: Any) -> Any:
            if hasattr(input_batch, "is_padding"):
                input_batch.is_padding.fill_(False)
            if hasattr(input_batch, "input_ids"):
                _fill(input_batch.input_ids, runner)
            return prepare(input_batch, req_states)

        with patch.object(runner.model_state, "prepare_inputs", prepare_inputs):
            yield
        return
    tokens = runner.input_ids.gpu if hasattr(runner, "input_ids") else torch.empty(0)
    before = tokens.clone()
    _fill(tokens, runner)
    mark = getattr(runner, "_prepare_padding_mask", None)  # an earlier vLLM has none
    with (
        nullcontext()
        if mark is None
        else patch.object(
            runner,
            "_prepare_padding_mask",
            lambda *args, **kwargs: mark(*args, **kwargs).fill_(False),
        )
    ):
        yield
    tokens.copy_(before)


def _fill(tokens: Tensor, runner: Any) -> None:
    if len(tokens):
        n_ids = runner.vllm_config.model_config.get_vocab_size() - 1
        tokens.copy_(torch.arange(len(tokens), device=tokens.device) % n_ids + 1)


def _moved(plain: Tensor, again: Tensor, steered: Tensor, least: float) -> bool:
    noise = (again - plain).norm()
    return bool((steered - plain).norm() > 10 * noise + least * plain.norm())
