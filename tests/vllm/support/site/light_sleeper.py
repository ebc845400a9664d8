"""A worker extension with vLLM's sleep at level 2, which a CPU's worker does not have."""

from types import SimpleNamespace
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from saif_vllm.worker.extension import SaifWorkerExtension


class LightSleeper(SaifWorkerExtension):
    """The part of sleep that saves a model's buffers; the rest frees a pool of the GPU's memory."""

    def fall_asleep(self: Any) -> None:
        """Save what ``Worker.sleep(level=2)`` saves."""
        model = self.model_runner.model
        self._sleep_saved_buffers = {
            name: buffer.cpu().clone() for name, buffer in model.named_buffers()
        }

    def rise(self: Any) -> None:
        """Call ``Worker.wake_up``, with a pool that does nothing."""
        self._sleep_mode_backend = SimpleNamespace(resume=lambda tags: None)
        Worker.wake_up(self)
