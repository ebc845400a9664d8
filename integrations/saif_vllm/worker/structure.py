"""What a loaded model looks like: its decoder layers, and where their outputs hold the stream.

Layers are found by structure. How their outputs are read is found by experiment, since no name
tells: most layers return two tensors whose sum is the residual stream, some return the stream
beside an input of theirs, some one tensor.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

_N_TOKENS = 8  # of a probe's batch


class Stream(enum.Enum):
    """Where a decoder layer's output holds the residual stream; steering writes to the first."""

    SUM = "the sum of the two tensors that the layer returns"
    FIRST = "the first tensor that the layer returns"


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """The decoder layers of a model: its one list of that many modules that is in no other list.

    Lists inside a layer, such as its experts, are not layers, however many they are.

    Raises:
        ValueError: none or several such lists.
    """
    inner: Any = getattr(model, "get_language_model", None)
    language_model = model if inner is None else inner()
    lists = {
        name: module
        for name, module in language_model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    found = [
        name
        for name, module in lists.items()
        if len(module) == num_layers and not any(name.startswith(f"{outer}.") for outer in lists)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {num_layers} decoder layers, "
            f"got {found}; steering does not know this model's structure"
        )
    return lists[found[0]]


def verify_streams(
    runner: Any, vllm_config: Any, layers: nn.ModuleList, hooked: Sequence[int]
) -> dict[int, Stream]:
    """Probe each hooked layer that this pipeline rank owns, in the loaded, uncompiled model.

    Nothing is left behind: no hook, no compiled or captured graph. All ranks that talk to one
    another in a forward (tensor, expert, data parallel) own the same layers, so they run the same
    number of forwards; those of a dummy batch send nothing to the next pipeline rank.

    The last layer of a rank hands its output to the next rank unread. It is taken to be as the
    layer before it, which must be of the same class.

    Args:
        runner: a V1 or V2 model runner with its model loaded, before the KV cache exists.
        vllm_config: of the engine.
        layers: of :func:`decoder_layers`.
        hooked: decoder layers to be steered; those of other ranks are passed over.

    Raises:
        ValueError: an output is not read in a way that steering knows.
    """
    from vllm.model_executor.models.utils import PPMissingLayer

    owned = [i for i, layer in enumerate(layers) if not isinstance(layer, PPMissingLayer)]
    d_model = vllm_config.model_config.get_hidden_size()
    n_tokens = min(_N_TOKENS, runner.max_num_tokens)
    with _dummy_forward(runner, vllm_config, n_tokens) as forward:
        return {
            layer: probe(
                layers[_read_on_this_rank(layers, owned, layer)], forward, d_model, n_tokens
            )
            for layer in hooked
            if layer in owned
        }


def probe(layer: nn.Module, forward: Callable[[], Tensor], d_model: int, n_tokens: int) -> Stream:
    """How the rest of a model reads the output (a, b) of a decoder layer, or a single tensor a.

    Semantics: a and b are replaced by random whole numbers, whose sums are exact in every dtype.
    Moving some of a to b changes nothing downstream iff only a + b is read, changing b changes
    nothing iff only a is read; changing a must change something. The layer's own output and what
    is before it play no role, so an empty stream or a batch of padding is as good as any.

    Args:
        layer: its output is [tokens, d_model] or [1, tokens, d_model] each.
        forward: runs the model once; all that the layer's output may influence, as one tensor.
        d_model: width of the residual stream.
        n_tokens: of the batch that ``forward`` runs. A layer that returns fewer is one of a model
            that cuts its stream up over the ranks.

    Raises:
        ValueError: neither holds, the output has another structure, or is too noisy to tell.
    """
    name = type(layer).__name__

    def change(a: int, b: int) -> Tensor:
        """The model's output where the layer's tensors are moved by ``a`` and ``b`` times delta."""
        calls = []

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            calls.append(1)
            return _replaced(name, output, d_model, n_tokens, (a, b))

        with layer.register_forward_hook(replace):
            output = forward()
        if len(calls) != 1:
            raise ValueError(
                f"{name}: expected a decoder layer that runs once a forward, got {len(calls)} runs"
            )
        return output

    # Always all five: the number of forwards must not depend on what a rank sees.
    base, again, first, second, moved = (
        change(*by) for by in ((0, 0), (0, 0), (1, 0), (0, 1), (1, -1))
    )
    noise, reach = float((again - base).norm()), float((first - base).norm())
    # Comparisons that NaN fails.
    if not (reach > 1e-3 * float(base.norm()) and reach > 100 * noise):
        raise ValueError(
            f"{name}: expected a first output that the rest of the model reads, got a change of "
            f"{reach:.3g} in its output when that was changed, and of {noise:.3g} when nothing was"
        )
    unread = 10 * noise + 1e-3 * reach
    if float((second - base).norm()) <= unread:
        return Stream.FIRST
    if float((moved - base).norm()) <= unread:
        return Stream.SUM
    raise ValueError(
        f"{name}: expected a decoder layer whose residual stream is its first output or the sum of "
        "its two outputs, got neither; steering does not know this model's structure"
    )


def _read_on_this_rank(layers: nn.ModuleList, owned: Sequence[int], layer: int) -> int:
    """A layer whose output says how that of ``layer`` is read."""
    if layer != owned[-1] or layer == len(layers) - 1:
        return layer
    if layer - 1 not in owned or type(layers[layer - 1]) is not type(layers[layer]):
        raise ValueError(
            f"layer {layer}: expected another {type(layers[layer]).__name__} before it on this "
            "pipeline rank, whose last layer it is, got none; steer another layer or use fewer "
            "ranks"
        )
    return layer - 1


def _replaced(name: str, output: Any, d_model: int, n_tokens: int, by: tuple[int, int]) -> Any:
    """A layer's output with whole numbers for its tensors, each moved by so many times delta."""
    parts = output if isinstance(output, tuple) else (output,)
    tensors = [part for part in parts if part is not None]
    if (
        not all(isinstance(part, Tensor) for part in tensors)
        or not 1 <= len(tensors) <= len(parts) <= 2
        or parts[0] is None
        or any(_shape(part) != (_shape(parts[0])[0], d_model) for part in tensors)
        or _shape(parts[0])[0] < n_tokens  # padding may be behind them
    ):
        raise ValueError(
            f"{name}: expected a decoder layer that returns one or two tensors [tokens, {d_model}],"
            f" of all {n_tokens} tokens of a batch, got {_described(output)}; steering does not"
            " know this model's structure"
        )
    # The same on all ranks.
    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, tensors[0].shape, generator=generator)

    values, delta = [whole(-4, 4) for _ in tensors], whole(1, 4) * (2 * whole(0, 1) - 1)
    replaced = [
        (value + times * delta).to(tensor)
        for tensor, value, times in zip(tensors, values, by, strict=False)
    ]
    if not isinstance(output, tuple):
        return replaced[0]
    return (*replaced, *output[len(replaced) :])


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """[tokens, d_model], also of the Transformers backend's [1, tokens, d_model]."""
    return tuple(tensor.shape[1:] if tensor.ndim == 3 and tensor.shape[0] == 1 else tensor.shape)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, tuple):
        return f"({', '.join(map(_described, output))})"
    return type(output).__name__


@contextmanager
def _dummy_forward(runner: Any, vllm_config: Any, n_tokens: int) -> Iterator[Callable[[], Tensor]]:
    """A function that runs a dummy batch, as vLLM's profiling run does, outside torch.compile."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention import Attention

    # V1 takes no skip_attn: before the KV cache exists it has no attention metadata anyway.
    options = {"skip_attn": True} if hasattr(runner, "model_state") else {}
    seen: list[Tensor] = []

    def keep(output: Any) -> Any:
        seen.append(_flat(output))
        return output

    def forward() -> Tensor:
        seen.clear()
        runner._dummy_run(n_tokens, is_profile=True, skip_eplb=True, **options)
        assert len(seen) == 1
        return seen[0]

    with ExitStack() as stack:
        stack.enter_context(set_current_vllm_config(vllm_config))
        # vLLM's own compilation, and that of everything else.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        model = runner.get_model()
        for module in model.modules():
            if hasattr(module, "do_not_compile"):
                stack.enter_context(patch.object(module, "do_not_compile", True))
            # Without metadata GPUs give zeros, the CPU what the memory held.
            if isinstance(module, Attention):
                stack.enter_context(_output_through(module, Tensor.zero_))
        stack.enter_context(_output_through(model, keep))
        yield forward


def _output_through(module: nn.Module, function: Callable[[Any], Any]) -> Any:
    """Patch of one module's forward. A hook is passed by where ``forward`` is called itself."""
    original = module.forward
    return patch.object(
        module, "forward", lambda *args, **kwargs: function(original(*args, **kwargs))
    )


def _flat(output: Any) -> Tensor:
    """All that a model passes on: hidden states, or a pipeline rank's tensors; a copy, 1-d fp32."""
    if isinstance(output, Tensor):
        tensors = [output]
    elif isinstance(output, tuple):  # and auxiliary states for a drafter
        tensors = [output[0]]
    else:
        passed_on: Mapping[str, Tensor] = output.tensors
        tensors = list(passed_on.values())
    return torch.cat([tensor.float().flatten() for tensor in tensors])
