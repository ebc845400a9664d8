"""Llama layers that hand on (hidden, -residual) to one another: their stream is the difference."""

from __future__ import annotations

from typing import Any

from after_import import after_import


@after_import("vllm.model_executor.models.llama")
def negate_the_residual(module: Any) -> None:
    layer = module.LlamaDecoderLayer
    original = layer.forward

    def forward(self: Any, positions: Any, hidden_states: Any, residual: Any) -> Any:
        before = None if residual is None else -residual
        hidden_states, residual = original(self, positions, hidden_states, before)
        return hidden_states, -residual

    layer.forward = forward
