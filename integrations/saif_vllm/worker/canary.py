"""The start-up canary: a made-up set must change the model's output before the first request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saif_fast.latent_set import LatentSet
from saif_fast.placement import Placement
from saif_kernels import FEW_TOKENS, LatentEdits, Window, compiles_in_time
from saif_vllm.request import Placed, SetUse
from saif_vllm.worker.batch import BatchRequest
from saif_vllm.worker.layers import HookedLayer, WorkerSteering
from saif_vllm.worker.override import override

# Change per channel: far above usual entries of the residual stream, far below fp16's largest
# number.
_STRENGTH = 64.0
# A smaller relative change of the output could be noise.
_LEAST_CHANGE = 1e-2
_N_TOKENS = 16
_SLOT = 0  # free: no set is loaded yet


class _Batch(NamedTuple):
    """Size and kind of a dummy batch."""

    n_tokens: int
    decode: bool

    def __str__(self) -> str:
        return f"a {'decode' if self.decode else 'prefill'} batch of size {self.n_tokens}"


def check_steering(steering: WorkerSteering, runner: Any) -> None:
    """Run the engine's own dummy batches with and without a canary at each hooked layer.

    There is a batch for each range of sizes that a model runner or our kernels run differently, and
    a canary with a constant edit and one with a live edit. Afterwards everything that a steered
    step needs is compiled, and no trace of the canary is left.

    Raises:
        RuntimeError: at some layer, tokens left no evidence of steering, or the output did not
            change.
    """
    with compiles_in_time(), _tokens_unlike_padding(runner), _streams_unlike_zero(runner):
        for batch in _batches(runner):
            plain, again = (_forward(runner, batch) for _ in range(2))
            if isinstance(plain, Tensor):  # Drafts may take the place of some tokens.
                batch = batch._replace(n_tokens=min(batch.n_tokens, len(plain)))
            own = slice(batch.n_tokens)  # without the padding of a graph
            for layer, hooked in steering.layers.items():
                for kind, edits in _canary_edits(hooked.bank.vector.shape[1]).items():
                    output = _with_canary(steering, layer, edits, runner, batch)
                    # Pipeline ranks before the last have no output to compare.
                    least = _LEAST_CHANGE * min(1.0, hooked.max_dose or 1.0)
                    if isinstance(output, Tensor) and not _moved(
                        plain[own], again[own], output[own], least
                    ):
                        raise RuntimeError(
                            f"start-up canary: {kind} at layer {layer} did not change the output "
                            f"of {batch}"
                        )


def _batches(runner: Any) -> Iterator[_Batch]:
    """Yield batches of few tokens and of many, within the captured graphs and beyond the largest.

    Batches that cannot occur while serving are left out: if a batch never has more than
    ``FEW_TOKENS`` tokens, only small ones are run.
    """
    is_v2 = hasattr(runner, "model_state")
    # Tokens per request in a decode step, drafts included.
    query = getattr(runner, "uniform_decode_query_len", None) or runner.decode_query_len
    yield _Batch(query, decode=True)
    n_requests = FEW_TOKENS // query + 1
    if n_requests <= runner.max_num_reqs and n_requests * query <= runner.max_num_tokens:
        yield _Batch(n_requests * query, decode=True)
    # V2 splits a dummy batch into requests of one token, a decode batch, unless it has more tokens
    # than there may be requests. V1 gives every request the batch's size as its length, which must
    # be within the context.
    least = runner.max_num_reqs + 1 if is_v2 else 1
    most = runner.max_num_tokens if is_v2 else min(runner.max_num_tokens, runner.max_model_len)
    captured = runner.vllm_config.compilation_config.cudagraph_capture_sizes or ()
    sizes = (_N_TOKENS, FEW_TOKENS + 1, max((FEW_TOKENS, *captured)) + 1)
    for n_tokens in sorted({min(max(n, least), most) for n in sizes}):
        yield _Batch(n_tokens, decode=False)


def _canary_edits(d_model: int) -> dict[str, LatentEdits]:
    # Alternating signs, because a norm would divide away a multiple of the stream itself.
    vector = torch.full((d_model,), _STRENGTH)
    vector[::2] *= -1
    sets = {
        "a vector": LatentSet.from_vector(vector, layer=0, num_layers=1),
        "a live latent": LatentSet.from_direction(
            vector, vector.norm().item(), layer=0, num_layers=1
        ),
    }
    return {kind: latent_set.edits_at(0) for kind, latent_set in sets.items()}


def _with_canary(
    steering: WorkerSteering, layer: int, edits: LatentEdits, runner: Any, batch: _Batch
) -> Any:
    tables, placement = steering.batch, Placement(_SLOT, {layer: 0})
    steering.banks.write_set(placement, {layer: edits})
    use = SetUse("canary", "", 1.0, changes_kv=False)
    capture = -1 if tables.capture is None else 0
    placed = Placed((use,), Window(prompt=True), capture, request_id="canary", slots=(_SLOT,))
    with tables.rehearse(BatchRequest(placed, prompt_len=batch.n_tokens), batch.n_tokens):
        output = _forward(runner, batch)
        _check_evidence(steering.layers[layer], layer, batch)
    if tables.capture is not None:
        tables.capture.store[:, capture].zero_()
    steering.banks.write_set(placement, {})
    return output


def _check_evidence(hooked: HookedLayer, layer: int, batch: _Batch) -> None:
    n_missed = int((hooked.dose[: batch.n_tokens, 0, 0] < 0).sum())
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
    # Cloned, because a graph's next replay overwrites its output buffer.
    return output.float().clone() if isinstance(output, Tensor) else output


@contextmanager
def _streams_unlike_zero(runner: Any) -> Iterator[None]:
    """Fill what a pipeline rank receives from the one before it, which is 0 in a dummy batch.

    Any change of a stream of length 0 exceeds a maximal dose.
    """
    received = getattr(runner, "intermediate_tensors", None)  # None: the first rank
    streams = [] if received is None else list(received.tensors.values())
    with torch.inference_mode():  # in which they were made
        for stream in streams:
            stream.fill_(1.0)
    yield
    with torch.inference_mode():
        for stream in streams:
            stream.zero_()


@contextmanager
def _tokens_unlike_padding(runner: Any) -> Iterator[None]:
    """Make the tokens of dummy batches inside count as real ones, with various ids.

    vLLM marks all tokens of a dummy batch as padding. A mixture of experts skips padding, so its
    output is whatever the memory held before, with a canary or without. And all ids are 0, whose
    embedding may be 0: see :func:`_streams_unlike_zero`.
    """
    if hasattr(runner, "model_state"):
        prepare = runner.model_state.prepare_inputs

        def prepare_inputs(input_batch: Any, req_states: Any) -> Any:
            if hasattr(input_batch, "is_padding"):
                input_batch.is_padding.fill_(False)
            if hasattr(input_batch, "input_ids"):
                _fill_token_ids(input_batch.input_ids, runner)
            return prepare(input_batch, req_states)

        with override(runner.model_state, "prepare_inputs", prepare_inputs):
            yield
        return
    tokens = runner.input_ids.gpu if hasattr(runner, "input_ids") else torch.empty(0)
    before = tokens.clone()
    _fill_token_ids(tokens, runner)
    mark = getattr(runner, "_prepare_padding_mask", None)  # earlier vLLMs do not have it
    with (
        nullcontext()
        if mark is None
        else override(
            runner,
            "_prepare_padding_mask",
            lambda *args, **kwargs: mark(*args, **kwargs).fill_(False),
        )
    ):
        yield
    tokens.copy_(before)


def _fill_token_ids(tokens: Tensor, runner: Any) -> None:
    if len(tokens):
        n_ids = runner.vllm_config.model_config.get_vocab_size() - 1
        tokens.copy_(torch.arange(len(tokens), device=tokens.device) % n_ids + 1)


def _moved(plain: Tensor, again: Tensor, steered: Tensor, least: float) -> bool:
    noise = (again - plain).norm()
    return bool((steered - plain).norm() > 10 * noise + least * plain.norm())
