"""A vLLM whose compile key misses what switches steering on."""

from __future__ import annotations

from typing import Any

from after_import import after_import


@after_import("vllm.config.vllm")
def ignore_additional_config(module: Any) -> None:
    config = module.VllmConfig
    original = config.compute_hash

    def compute_hash(self: Any) -> str:
        kept, self.additional_config = self.additional_config, {}
        try:
            return str(original(self))
        finally:
            self.additional_config = kept

    config.compute_hash = compute_hash
