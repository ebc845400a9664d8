"""The decoder layers of a vLLM model."""

from __future__ import annotations

from typing import Any

from torch import nn

# These return the whole stream beside an input of the layer or of its second half: the sum of the
# two is not the residual stream. Subclasses count.
_WHOLE_STREAM = frozenset(
    {
        "CohereCompassDecoderLayer",
        "CohereDecoderLayer",
        "Cohere2MoeDecoderLayer",
        "Exaone4DecoderLayer",
        "GraniteMoeHybridAttentionDecoderLayer",
        "GraniteMoeHybridMambaDecoderLayer",
        "HyperCLOVAXDecoderLayer",
        "MuseGlimmerDecoderLayer",
        "PhiMoEDecoderLayer",
        "StablelmDecoderLayer",
    }
)


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """The decoder layers of a model, found by structure.

    Raises:
        ValueError: not exactly one list of ``num_layers`` modules, or a structure that steering
            would read wrongly.
    """
    inner: Any = getattr(model, "get_language_model", None)
    language_model = model if inner is None else inner()
    found = [
        (name, module)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {num_layers} decoder layers, "
            f"got {[name for name, _ in found]}; steering does not know this model's structure"
        )
    layers = found[0][1]
    for layer in layers:
        if _WHOLE_STREAM & {cls.__name__ for cls in type(layer).__mro__}:
            raise ValueError(
                f"{type(layer).__name__}: expected a layer whose outputs sum to the residual stream"
            )
    return layers
