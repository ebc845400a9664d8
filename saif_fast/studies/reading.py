"""Residuals that are read once, however many studies ask for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saif_fast.identify import ResidualSource


class ReadOnce:
    """A :class:`~saif_fast.identify.ResidualSource` that keeps what it read, at fixed layers.

    Args:
        source: the model.
        layers: all layers that will be asked for.

    Examples:
        >>> source = ReadOnce(residual_source(model), layers=[12, 20])
        >>> activations = collect(source, tokenizer, pairs, [20])
    """

    def __init__(self, source: ResidualSource, layers: Sequence[int]) -> None:
        self.model = source.model
        self._source, self._layers = source, sorted(set(layers))
        # [layers, positions, d_model] by the tokens of a text and the positions in it
        self._kept: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def read(
        self, ids: Sequence[list[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return residuals by layer, as :class:`ResidualSource` does."""
        keys = [(tuple(row), tuple(at)) for row, at in zip(ids, positions, strict=True)]
        new = [key for key in dict.fromkeys(keys) if key not in self._kept]
        if new:
            read = self._source.read(
                [list(row) for row, _ in new], [at for _, at in new], self._layers
            )
            stacked = torch.stack([read[layer] for layer in self._layers])
            parts = stacked.split([len(at) for _, at in new], dim=1)
            self._kept.update(zip(new, parts, strict=True))
        found = torch.cat([self._kept[key] for key in keys], dim=1)
        return {layer: found[self._layers.index(layer)] for layer in layers}
