"""The op in the compiled graph: it knows its layer's name, and finds the layer when it runs.

vLLM's attention works the same way. With tables as arguments, the graph would have a dozen more
inputs, and torch.compile would trace the batch-sized slices of the token tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saif_vllm.worker.structure import ResidualForm

LIBRARY = torch.library.Library("saif_vllm", "FRAGMENT")
LIBRARY.define("steer_layer_(Tensor(a!) hidden, Tensor? residual, str name) -> ()")


def _steer_layer(hidden: Tensor, residual: Tensor | None, name: str) -> None:
    from vllm.forward_context import get_forward_context

    # vLLM's Transformers backend has a batch dimension of 1. Views, and not in the graph, because
    # the layer's own output must be written.
    hidden = hidden.view(-1, hidden.shape[-1])
    residual = None if residual is None else residual.view_as(hidden)
    get_forward_context().no_compile_layers[name].steer(hidden, residual)


def _steer_layer_fake(hidden: Tensor, residual: Tensor | None, name: str) -> None:
    """Do nothing: the op writes in place and returns nothing."""


LIBRARY.impl("steer_layer_", _steer_layer, "CompositeExplicitAutograd")
torch.library.register_fake("saif_vllm::steer_layer_", _steer_layer_fake, lib=LIBRARY)


def steering_hook(name: str, form: ResidualForm) -> Callable[[torch.nn.Module, Any, Any], None]:
    """Make a forward hook that steers a decoder layer's output in place.

    Args:
        name: of the hooked layer in vLLM's forward context.
        form: where the output holds the residual stream, as verified at start.
    """

    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        residual = output[1] if form is ResidualForm.SUM else None
        torch.ops.saif_vllm.steer_layer_(hidden, residual, name)

    return hook
