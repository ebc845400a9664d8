"""The worker extension. Importing it arms the worker.

vLLM logs and ignores a plugin that fails to import, but not a worker extension. So the checks that
must not be skipped run when this module is imported.

Subclass :class:`SaifWorkerExtension` for an extension of your own; vLLM takes only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from saif_fast.slots import Placement
from saif_kernels import LatentEdits
from saif_vllm.seams import require_armed
from saif_vllm.worker import canary, patches
from saif_vllm.worker.layers import Steering
from saif_vllm.worker.scrub import scrub

require_armed()
patches.arm()


class SaifWorkerExtension:
    """Methods that vLLM's ``collective_rpc`` finds on every worker."""

    saif_steering: Steering

    def saif_check_start(self: Any) -> None:
        """Run the canary.

        Raises:
            RuntimeError: the model is not steered.
        """
        if not hasattr(self, "saif_steering"):
            raise RuntimeError("the model was loaded without steering: a worker went past the seam")
        canary.check(self.saif_steering, self.model_runner)

    def saif_write(self, placement: Placement, compiled: Mapping[int, LatentEdits]) -> None:
        """Load a set."""
        self.saif_steering.write(placement, compiled)

    def saif_scrub(self: Any) -> None:
        """Put 0 where the KV cache holds what is not finite."""
        scrub(self.model_runner.kv_caches, self.vllm_config.cache_config.cache_dtype)

    def saif_captured(self, n_rows: int) -> list[tuple[int, bytes]]:
        """The first rows of the residuals that were kept: each layer, with [n_rows, d_model] fp32.

        Raises:
            ValueError: this engine keeps none.
        """
        capture = self.saif_steering.step.capture
        if capture is None:
            raise ValueError("max_captures: expected an engine that keeps residuals, got 0")
        kept = capture.store[:, :n_rows].float().cpu().numpy()
        layers = self.saif_steering.layers
        return [(layer, rows.tobytes()) for layer, rows in zip(layers, kept, strict=True)]

    def saif_report(self) -> list[dict[str, Any]]:
        """What was done for each request, as :class:`~saif_vllm.reporting.RequestReport` has it."""
        return [msgspec.to_builtins(found) for found in self.saif_steering.step.proof.report()]

    def saif_totals(self) -> dict[str, Any]:
        """What was done so far, as :class:`~saif_vllm.reporting.Totals` has it."""
        totals = self.saif_steering.step.proof.totals()
        return cast(dict[str, Any], msgspec.to_builtins(totals))
