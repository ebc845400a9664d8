"""A mixture of experts that leaves rows of padding as the memory was, as kernels of GPUs do."""

from __future__ import annotations

from typing import Any

import torch
from after_import import after_import


@after_import("vllm.model_executor.models.qwen3_moe")
def leave_padding(module: Any) -> None:
    from vllm.forward_context import get_forward_context

    block = module.Qwen3MoeSparseMoeBlock
    original = block.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        padding = get_forward_context().is_padding
        if padding is not None:
            rows = padding[: len(output)]
            output[rows] = 1e3 * torch.randn_like(output[rows])
        return output

    block.forward = forward
