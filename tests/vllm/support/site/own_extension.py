"""A user's own worker extension beside steering."""

from saif_vllm.worker.extension import SaifWorkerExtension


class OwnExtension(SaifWorkerExtension):
    def own_method(self) -> list[int]:
        return list(self.saif_steering.layers)
