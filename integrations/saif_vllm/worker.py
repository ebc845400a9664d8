"""The worker extension: its import is what vLLM does not swallow.

Subclass :class:`SaifWorkerExtension` for an extension of your own; vLLM takes only one.
"""

from __future__ import annotations

from typing import Any

from saif_vllm import canary, seams
from saif_vllm.tables import Steering

seams.require_armed()
seams.arm_worker()


class SaifWorkerExtension:
    """Methods that vLLM's ``collective_rpc`` finds on every worker."""

    saif_steering: Steering

    def saif_check_start(self: Any) -> list[str]:
        """Run the canary; content hashes of the sets that are loaded.

        Raises:
            RuntimeError: the model is not steered.
        """
        if not hasattr(self, "saif_steering"):
            raise RuntimeError("the model was loaded without steering: a worker went past the seam")
        canary.check(self.saif_steering, self.model_runner)
        return sorted(self.saif_steering.step.slots)
