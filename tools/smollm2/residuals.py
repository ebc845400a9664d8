"""Residual streams of SmolLM2 behind several layers, collected in one pass and kept on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["collect", "count", "read"]

BATCH_TOKENS = 4096
REPEATS = 20  # how often the same prefix is kept, such as that of the chat template
MEDIANS = 4.0  # longer residuals are left out: the first token's is 100 times the others'


@torch.inference_mode()
def collect(
    model: PreTrainedModel, sequences: Sequence[list[int]], layers: Sequence[int], folder: Path
) -> None:
    """Write the residual stream behind each layer to ``layerNN.safetensors``.

    A residual depends on no later token. A prefix that many sequences share, such as the default
    system prompt, has the same residuals in each, so only the first ``REPEATS`` of them count.

    Args:
        model: the model, in bf16.
        sequences: token ids.
        layers: whose outputs are written: [tokens, d_model] bf16 each.
        folder: a new folder for them.

    Examples:
        >>> collect(model, [[1, 2, 3], [4, 5]], layers=[14, 23], folder=Path("residuals"))
        >>> read(Path("residuals"), 14).shape
        torch.Size([5, 576])
    """
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    wanted = _first_prefixes(sequences)
    hooks = [
        model.model.layers[layer].register_forward_hook(
            # A hook that returns a value would replace the output.
            lambda module, args, output, layer=layer: rows[layer].append(output)
        )
        for layer in layers
    ]
    try:
        for batch in _batches(sequences):
            width = max(len(sequences[i]) for i in batch)
            # Padding on the right changes nothing to its left, because attention is causal.
            ids = [sequences[i] + [0] * (width - len(sequences[i])) for i in batch]
            keep = [wanted[i] + [False] * (width - len(sequences[i])) for i in batch]
            model.model(input_ids=torch.tensor(ids), use_cache=False)
            for outputs in rows.values():
                outputs.append(outputs.pop()[torch.tensor(keep)])
    finally:
        for hook in hooks:
            hook.remove()
    folder.mkdir(parents=True)
    for layer, outputs in rows.items():
        save_file({"residuals": torch.cat(outputs)}, _path(folder, layer))


def read(folder: Path, layer: int) -> Tensor:
    """Return what :func:`collect` wrote of a layer, without rows of extreme norm."""
    x = load_file(_path(folder, layer))["residuals"]
    norms = x.norm(dim=1, dtype=torch.float32)
    return x[norms <= MEDIANS * norms.median()]


def count(folder: Path, layer: int) -> int:
    """Return how many rows :func:`collect` wrote of a layer."""
    with safe_open(_path(folder, layer), framework="pt") as file:
        rows: int = file.get_slice("residuals").get_shape()[0]
    return rows


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer{layer:02d}.safetensors"


def _first_prefixes(sequences: Sequence[list[int]]) -> list[list[bool]]:
    """Return for every token whether its prefix is among the first ``REPEATS`` of its kind."""
    seen: Counter[int] = Counter()
    wanted = []
    for sequence in sequences:
        prefix, flags = 0, []
        for token in sequence:
            prefix = hash((prefix, token))
            seen[prefix] += 1
            flags.append(seen[prefix] <= REPEATS)
        wanted.append(flags)
    return wanted


def _batches(sequences: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield indices of sequences that follow each other, ``BATCH_TOKENS`` with their padding."""
    batch: list[int] = []
    width = 0
    for i, sequence in enumerate(sequences):
        longest = max(width, len(sequence))
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch, longest = [], len(sequence)
        batch.append(i)
        width = longest
    if batch:
        yield batch
