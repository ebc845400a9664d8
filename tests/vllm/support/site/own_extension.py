"""A user's own worker extension beside steering."""

from saif_vllm.worker import SaifWorkerExtension


class OwnExtension(SaifWorkerExtension):
    def own_method(self) -> list[int]:
        return sorted(self.saif_steering.tables)
