"""The op in the compiled graph: it names its layer and looks the tables up when it runs.

vLLM's attention does the same. Traced with tables as arguments, the graph would have a dozen more
inputs, and the batch-sized slices of the token tables would be traced too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("saif_vllm", "FRAGMENT")
LIBRARY.define("steer_layer_(Tensor(a!) hidden, Tensor? residual, str name) -> ()")


def _steer_layer(hidden: Tensor, residual: Tensor | None, name: str) -> None:
    from vllm.forward_context import get_forward_context

    get_forward_context().no_compile_layers[name].steer(hidden, residual)


def _nothing(hidden: Tensor, residual: Tensor | None, name: str) -> None:
    """Fake of an op that writes in place and returns nothing."""


LIBRARY.impl("steer_layer_", _steer_layer, "CompositeExplicitAutograd")
torch.library.register_fake("saif_vllm::steer_layer_", _nothing, lib=LIBRARY)


def steering_hook(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
    """A forward hook that steers a decoder layer's output in place.

    A layer returns ``(hidden, residual)``, whose sum is the residual stream, or the stream itself.

    Args:
        name: of the layer's tables in vLLM's forward context.
    """

    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2:
            hidden, residual = output
        else:
            hidden, residual = output, None
        if not isinstance(hidden, Tensor) or hidden.ndim != 2:
            raise TypeError(
                f"{name}: expected a decoder layer that returns (hidden, residual) or hidden, each "
                "[tokens, hidden size]; steering does not know this model's structure"
            )
        torch.ops.saif_vllm.steer_layer_(hidden, residual, name)

    return hook
