"""Structure of a loaded model: its decoder layers, and the form of their outputs.

Layers are found by structure. Where an output holds the residual stream is found by experiment,
because no name tells: most layers return two tensors whose sum is the stream, some return the
stream and one of their inputs, some return one tensor.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saif_vllm.worker.override import override

_N_TOKENS = 8  # in the batch of a probe


class ResidualForm(enum.Enum):
    """Where a decoder layer's output holds the residual stream.

    Steering writes to the first tensor in either case.
    """

    SUM = "the sum of the two tensors that the layer returns"
    FIRST = "the first tensor that the layer returns"


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """Find the decoder layers of a model: the one list of ``num_layers`` modules.

    A list nested inside another (a layer's experts) does not count, even if its length matches.
    ``saif_fast.hf.decoder_layers`` does the same for a Hugging Face model, by other rules.

    Raises:
        ValueError: there is no such list, or several.
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


def verify_forms(
    runner: Any, vllm_config: Any, layers: nn.ModuleList, hooked: Sequence[int]
) -> dict[int, ResidualForm]:
    """Probe each hooked layer that this pipeline rank owns, in the loaded, uncompiled model.

    No hook and no compiled or captured graph is left behind. All ranks that communicate during a
    forward (tensor, expert, data parallel) own the same layers, so they run the same number of
    forwards. Forwards of a dummy batch send nothing to the next pipeline rank.

    The last layer of a rank passes its output to the next rank, so nothing on this rank reads it.
    It is assumed to have the form of the layer before it, which must be of the same class.

    Args:
        runner: a V1 or V2 model runner with its model loaded, before the KV cache exists.
        vllm_config: of the engine.
        layers: of :func:`decoder_layers`.
        hooked: decoder layers to be steered; layers of other ranks are skipped.

    Raises:
        ValueError: an output has a form that steering does not know.
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


def probe(
    layer: nn.Module, forward: Callable[[], Tensor], d_model: int, n_tokens: int
) -> ResidualForm:
    """Find out how the rest of a model reads a decoder layer's output (a, b), or a single tensor a.

    Semantics: a and b are replaced by random whole numbers, whose sums are exact in every dtype.
    Moving some of a to b changes nothing downstream iff only a + b is read. Changing b changes
    nothing iff only a is read. Changing a must change something. The layer's real output is
    replaced, so a dummy batch is as good as real input.

    Args:
        layer: each tensor of its output is [tokens, d_model] or [1, tokens, d_model].
        forward: runs the model once; returns, as one tensor, all that the layer's output may
            influence.
        d_model: width of the residual stream.
        n_tokens: in the batch that ``forward`` runs. If a layer returns fewer, its model splits the
            stream over the ranks.

    Raises:
        ValueError: neither holds, the output has another structure, or the model is too noisy to
            tell.
    """
    name = type(layer).__name__

    def change(a: int, b: int) -> Tensor:
        """Run the model with the layer's tensors moved by ``a`` and ``b`` times delta."""
        calls = []

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            calls.append(1)
            return _replaced(name, output, d_model, n_tokens, (a, b))

        with layer.register_forward_hook(replace):
            output = forward()
        if len(calls) != 1:
            raise ValueError(
                f"{name}: expected a decoder layer that runs once per forward, "
                f"got {len(calls)} runs"
            )
        return output

    # Always five forwards: their number must not depend on what a rank finds.
    base, again, first, second, moved = (
        change(*by) for by in ((0, 0), (0, 0), (1, 0), (0, 1), (1, -1))
    )
    noise, reach = float((again - base).norm()), float((first - base).norm())
    # Written so that NaN fails the comparison.
    if not (reach > 1e-3 * float(base.norm()) and reach > 100 * noise):
        raise ValueError(
            f"{name}: expected a first output that the rest of the model reads, got a change of "
            f"{reach:.3g} in its output when that was changed, and of {noise:.3g} when nothing was"
        )
    unread = 10 * noise + 1e-3 * reach
    if float((second - base).norm()) <= unread:
        return ResidualForm.FIRST
    if float((moved - base).norm()) <= unread:
        return ResidualForm.SUM
    raise ValueError(
        f"{name}: expected a decoder layer whose residual stream is its first output or the sum of "
        "its two outputs, got neither; steering does not know this model's structure"
    )


def _read_on_this_rank(layers: nn.ModuleList, owned: Sequence[int], layer: int) -> int:
    """Return a layer that this rank can probe in place of ``layer``: mostly itself."""
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
    """Replace a layer's tensors by whole numbers, each moved by its ``by`` times delta."""
    parts = output if isinstance(output, tuple) else (output,)
    tensors = [part for part in parts if part is not None]
    if (
        not all(isinstance(part, Tensor) for part in tensors)
        or not 1 <= len(tensors) <= len(parts) <= 2
        or parts[0] is None
        or any(_shape(part) != (_shape(parts[0])[0], d_model) for part in tensors)
        or _shape(parts[0])[0] < n_tokens  # more are padding
    ):
        raise ValueError(
            f"{name}: expected a decoder layer that returns one or two tensors [tokens, {d_model}],"
            f" of all {n_tokens} tokens of a batch, got {_described(output)}; steering does not"
            " know this model's structure"
        )
    # Seeded, because all ranks must use the same numbers.
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
    """Return [tokens, d_model], also for the Transformers backend's [1, tokens, d_model]."""
    return tuple(tensor.shape[1:] if tensor.ndim == 3 and tensor.shape[0] == 1 else tensor.shape)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, tuple):
        return f"({', '.join(map(_described, output))})"
    return type(output).__name__


@contextmanager
def _dummy_forward(runner: Any, vllm_config: Any, n_tokens: int) -> Iterator[Callable[[], Tensor]]:
    """Yield a function that runs a dummy batch, as vLLM's profiling run does, but uncompiled."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention import Attention

    # V1 has no skip_attn, and before the KV cache exists it has no attention metadata anyway.
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
        # Switches off torch.compile. vLLM's own wrapper around it is switched off below.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        model = runner.get_model()
        for module in model.modules():
            if hasattr(module, "do_not_compile"):
                stack.enter_context(override(module, "do_not_compile", True))
            # Without attention metadata, GPU backends return zeros but the CPU backend returns
            # uninitialised memory; zero it.
            if isinstance(module, Attention):
                stack.enter_context(_output_through(module, Tensor.zero_))
        stack.enter_context(_output_through(model, keep))
        yield forward


def _output_through(module: nn.Module, function: Callable[[Any], Any]) -> Any:
    """Pass the module's output through ``function`` inside the block.

    This overrides ``forward`` itself, because vLLM calls some modules' ``forward`` directly, which
    skips their hooks.
    """
    original = module.forward
    return override(module, "forward", lambda *args, **kwargs: function(original(*args, **kwargs)))


def _flat(output: Any) -> Tensor:
    """Copy all that a model or a pipeline rank of it returns to one fp32 vector."""
    if isinstance(output, Tensor):
        tensors = [output]
    elif isinstance(output, tuple):  # and auxiliary states for a drafter
        tensors = [output[0]]
    else:
        passed_on: Mapping[str, Tensor] = output.tensors
        tensors = list(passed_on.values())
    return torch.cat([tensor.float().flatten() for tensor in tensors])
