"""A worker extension for tests that says what steering holds in the worker now."""

from __future__ import annotations

from typing import Any

from saif_vllm.worker import SaifWorkerExtension


class WorkerState(SaifWorkerExtension):
    def saif_worker_state(self) -> dict[str, Any]:
        step = self.saif_steering.step
        step.clear()
        return {
            "rows held": sum(row >= 0 for row in step._held.values()),
            "rows free": len(step._free),
            "rows counted": len(step.proof._asked),
            "steered tokens": int((step.token_row >= 0).sum()),
            "tables": {
                name: [table.data_ptr(), *table.shape]
                for name, table in self.saif_steering.tensors().items()
            },
        }
