"""The op in the compiled graph: it names its layer and looks the tables up when it runs.

vLLM's attention does the same. Traced with tables as arguments, the graph would have a dozen more
inputs, and the batch-sized slices of the token tables would be traced too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saif_vllm.worker.structure import Stream

LIBRARY = torch.library.Library("saif_vllm", "FRAGMENT")
LIBRARY.define("steer_layer_(Tensor(a!) hidden, Tensor? residual, str name) -> ()")


def _steer_layer(hidden: Tensor, residual: Tensor | None, name: str) -> None:
    from vllm.forward_context import get_forward_context

    # vLLM's Transformers backend has a batch dimension of 1. Views, not in the graph: what is
    # written must be the layer's own output.
    hidden = hidden.view(-1, hidden.shape[-1])
    residual = None if residual is None else residual.view_as(hidden)
    get_forward_context().no_compile_layers[name].steer(hidden, residual)


def _nothing(hidden: Tensor, residual: Tensor | None, name: str) -> None:
    """Fake of an op that writes in place and returns nothing."""


LIBRARY.impl("steer_layer_", _steer_layer, "CompositeExplicitAutograd")
torch.library.register_fake("saif_vllm::steer_layer_", _nothing, lib=LIBRARY)


def steering_hook(name: str, stream: Stream) -> Callable[[torch.nn.Module, Any, Any], None]:
    """A forward hook that steers a decoder layer's output in place.

    Args:
        name: of the layer's tables in vLLM's forward context.
        stream: where the output holds the residual stream, as verified at start.
    """

    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        residual = output[1] if stream is Stream.SUM else None
        torch.ops.saif_vllm.steer_layer_(hidden, residual, name)

    return hook
