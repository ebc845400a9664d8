"""A worker extension for tests that looks into the KV cache."""

from __future__ import annotations

from typing import Any

from saif_vllm.worker.extension import SaifWorkerExtension


class FiniteKV(SaifWorkerExtension):
    def saif_check_kv(self: Any) -> None:
        """Fail if an entry is not finite, in any block, used or not."""
        for layer, cache in enumerate(self.model_runner.kv_caches):
            n_broken = int((~cache.isfinite()).sum())
            assert n_broken == 0, f"{n_broken} entries of layer {layer}'s KV cache are not finite"
