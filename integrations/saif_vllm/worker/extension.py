"""The worker extension. Importing it arms the worker.

vLLM logs and ignores a plugin that fails to import, but not a worker extension. So the checks that
must not be skipped run when this module is imported.

Subclass :class:`SaifWorkerExtension` for an extension of your own; vLLM takes only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from saif_fast.placement import Placement
from saif_kernels import LatentEdits
from saif_vllm.seams import require_armed
from saif_vllm.worker import canary, patches
from saif_vllm.worker.layers import WorkerSteering
from saif_vllm.worker.scrub import scrub_kv

require_armed()
patches.arm()


class SaifWorkerExtension:
    """Methods that vLLM's ``collective_rpc`` finds on every worker."""

    saif_steering: WorkerSteering

    def saif_check_start(self: Any) -> None:
        """Run the canary.

        Raises:
            RuntimeError: the model is not steered.
        """
        if not hasattr(self, "saif_steering"):
            raise RuntimeError("the model was loaded without steering: a worker went past the seam")
        canary.check_steering(self.saif_steering, self.model_runner)

    def saif_load_set(self, placement: Placement, compiled: Mapping[int, LatentEdits]) -> None:
        """Write a set into the banks; no request of a running batch uses its slot."""
        self.saif_steering.tables.write_set(placement, compiled)

    def saif_scrub_kv(self: Any) -> None:
        """Put 0 in place of every number in the KV cache that is not finite."""
        scrub_kv(self.model_runner.kv_caches, self.vllm_config.cache_config.cache_dtype)

    def saif_read_captures(self, n_places: int) -> list[tuple[int, bytes]]:
        """Return the first ``n_places`` captured residuals.

        Returns:
            Each hooked layer, with [n_places, d_model] fp32.

        Raises:
            ValueError: this engine captures none.
        """
        capture = self.saif_steering.batch.capture
        if capture is None:
            raise ValueError("max_captures: expected an engine that keeps residuals, got 0")
        kept = capture.store[:, :n_places].float().cpu().numpy()
        layers = self.saif_steering.layers
        return [(layer, found.tobytes()) for layer, found in zip(layers, kept, strict=True)]

    def saif_report(self) -> list[dict[str, Any]]:
        """Return a :class:`~saif_vllm.reporting.RequestReport` per request, as builtins."""
        return [msgspec.to_builtins(found) for found in self.saif_steering.batch.proof.report()]

    def saif_totals(self) -> dict[str, Any]:
        """Return :class:`~saif_vllm.reporting.Totals`, as builtins."""
        totals = self.saif_steering.batch.proof.totals()
        return cast(dict[str, Any], msgspec.to_builtins(totals))
