"""A worker extension with vLLM's sleep at level 2, which a CPU's worker does not have."""

from types import SimpleNamespace
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from saif_vllm.worker.extension import SaifWorkerExtension


class LightSleeper(SaifWorkerExtension):
    """What becomes of a model's buffers; all else that sleep discards is in a pool of the GPU's."""

    def fall_asleep(self: Any) -> None:
        """What ``Worker.sleep(level=2)`` saves."""
        model = self.model_runner.model
        self._sleep_saved_buffers = {
            name: buffer.cpu().clone() for name, buffer in model.named_buffers()
        }

    def rise(self: Any) -> None:
        """``Worker.wake_up``, over a pool that does nothing."""
        self._sleep_mode_backend = SimpleNamespace(resume=lambda tags: None)
        Worker.wake_up(self)
