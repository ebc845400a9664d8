"""Utilities of the engine core for tests: what steering holds now, and how sets were loaded."""

from __future__ import annotations

import time
from array import array
from typing import Any

from after_import import after_import

# Milliseconds of reading a set's file and of putting a set into the tables; most live latents at a
# layer of the latter. Arrays, as the soak test weighs this process.
_read, _loaded, _latents = array("d"), array("d"), array("i")


@after_import("vllm.v1.engine.core")
def add_utilities(module: Any) -> None:
    def saif_state(self: Any) -> dict[str, int]:
        admission = self.saif_admission
        residency = admission._residency
        loaded = residency._loaded.values()
        return {
            "requests": len(self.scheduler.requests),
            "uses of sets": sum(len(known.users) for known in loaded),
            "waiting for room": len(admission._queue) + len(admission._requeued),
            "streaming inputs": len(admission._sessions),
            "sets loaded": len(loaded),
            "sets placed": len(residency._slots.placed),
            "sets remembered": len(admission._catalog._by_content),
        }

    def saif_loads(self: Any) -> dict[str, list[float]]:
        """Return the times since the last call."""
        found = {"read": list(_read), "loaded": list(_loaded), "latents": list(_latents)}
        for times in (_read, _loaded, _latents):
            del times[:]
        return found

    module.EngineCore.saif_state = saif_state
    module.EngineCore.saif_loads = saif_loads


@after_import("saif_vllm.core.residency")
def time_loading(module: Any) -> None:
    original = module.Residency._load

    def _load(self: Any, offered: Any) -> None:
        latent_set = offered.latent_set
        there = latent_set.content_hash in self._loaded
        began = time.perf_counter()
        original(self, offered)  # raises where there is no room
        if not there:
            _loaded.append(1e3 * (time.perf_counter() - began))
            _latents.append(max(latent_set.n_live.values(), default=0))

    module.Residency._load = _load


@after_import("saif_vllm.catalog")
def time_reading(module: Any) -> None:
    original = module.SetCatalog.read_received

    def received(self: Any, found: Any) -> Any:
        known = found.content_hash in self._by_content
        began = time.perf_counter()
        offered = original(self, found)
        if not known:
            _read.append(1e3 * (time.perf_counter() - began))
        return offered

    module.SetCatalog.read_received = received
