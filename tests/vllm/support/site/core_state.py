"""``saif_state``, a utility of the engine core for tests: what steering holds there now."""

from __future__ import annotations

from typing import Any

from after_import import after_import


@after_import("vllm.v1.engine.core")
def add_utility(module: Any) -> None:
    def saif_state(self: Any) -> dict[str, int]:
        admission = self.saif
        loaded = admission._loaded.values()
        return {
            "requests": len(self.scheduler.requests),
            "uses of sets": sum(len(known.users) for known in loaded),
            "waiting for room": len(admission._line) + len(admission._returning),
            "streaming inputs": len(admission._sessions),
            "sets loaded": len(loaded),
            "sets placed": len(admission._slots.placed),
            "files remembered": len(admission._catalog._read),
        }

    module.EngineCore.saif_state = saif_state
