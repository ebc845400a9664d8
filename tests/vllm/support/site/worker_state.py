"""A worker extension for tests that says what steering holds in the worker now."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from saif_vllm.worker.extension import SaifWorkerExtension


@dataclass
class Pauses:
    """Pauses of the worker between two forwards, in which it samples and the core schedules."""

    n: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.n += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)


class WorkerState(SaifWorkerExtension):
    saif_loads = 0  # since the last forward

    def saif_worker_state(self) -> dict[str, Any]:
        batch = self.saif_steering.batch
        batch.clear_tokens()
        return {
            "rows held": sum(row >= 0 for row in batch._row_of.values()),
            "rows free": len(batch._free_rows),
            "rows counted": len(batch.proof._live),
            "steered tokens": int((batch.token_row >= 0).sum()),
            "tables": {
                name: [table.data_ptr(), *table.shape]
                for name, table in self.saif_steering.tensors().items()
            },
        }

    def saif_load_set(self, *loaded: Any) -> None:
        self.saif_loads += 1
        super().saif_load_set(*loaded)

    def saif_watch_pauses(self: Any) -> None:
        """Note pauses from now on; those in which sets were loaded are noted apart."""
        self.saif_pauses = {False: Pauses(), True: Pauses()}
        original, ended = self.model_runner.execute_model, None

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal ended
            if not scheduler_output.total_num_scheduled_tokens:
                return original(scheduler_output, *args, **kwargs)
            if ended is not None:
                self.saif_pauses[self.saif_loads > 0].add(time.perf_counter() - ended)
            self.saif_loads = 0
            result = original(scheduler_output, *args, **kwargs)
            ended = time.perf_counter()
            return result

        self.model_runner.execute_model = execute_model

    def saif_paused(self: Any) -> list[dict[str, Any]]:
        """Return the pauses without loads, and those with some."""
        return [asdict(self.saif_pauses[loads]) for loads in (False, True)]
