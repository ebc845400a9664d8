"""An engine core of which only admission and residency are real, and sets for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from offered import catalog, core_request

from saif_fast.edits import Edit
from saif_fast.latent_set import Latent, LatentSet, Site, SiteTensors
from saif_vllm.catalog import SetCatalog
from saif_vllm.core.admission import Admission, Admitted
from saif_vllm.core.residency import Residency
from saif_vllm.request import get_steered


def taken_in(admitted: Admitted | None, resumable: bool = False) -> Any:
    """Make what admission reads of a vLLM ``Request``."""
    params = SimpleNamespace(extra_args=None)
    return SimpleNamespace(saif_admitted=admitted, sampling_params=params, resumable=resumable)


def admission(offered: SetCatalog) -> Admission:
    """Make an admission whose workers accept any set."""
    return Admission(offered, Residency(offered, lambda placement, edits: None), lambda: None)


def slots_of(admitted: Admitted) -> tuple[int, ...]:
    """Return the slots of a running request's sets."""
    assert admitted.placed is not None
    return admitted.placed.slots


class Core:
    """An engine core of which only admission and residency are real."""

    def __init__(self, folder: Path, **capacity: int) -> None:
        self.folder = folder
        self.slots: dict[int, float] = {}  # what the workers hold: the vector's value, by slot
        self.rows: dict[int, set[int]] = {}  # and its place in the pool of live latents
        self.catalog = catalog(folder, **capacity)
        self.residency = Residency(self.catalog, self._write)
        self.admission = Admission(self.catalog, self.residency, lambda: None)
        self.running: list[Admitted] = []
        self.resubmitted: list[Admitted] = []
        self._ids = 0

    def _write(self, placement: Any, edits: Any) -> None:
        assert all(placement.slot not in self._used(admitted) for admitted in self.running)
        self.slots[placement.slot] = float(edits[2].vector[0])
        begin = placement.offset[2]
        self.rows[placement.slot] = set(range(begin, begin + len(edits[2].p)))

    @staticmethod
    def _used(admitted: Admitted) -> set[int]:
        return set(slots_of(admitted))

    def ask(self, text: str) -> Admitted:
        self._ids += 1
        admitted = self.admission.admit(core_request({"saif": text}, f"{self._ids}-abc"))
        assert admitted is not None
        self.add(admitted)
        return admitted

    def piece(self, text: str, **fields: Any) -> Admitted:
        """Admit one more piece of the only streaming input."""
        request = core_request({"saif": text}, "0-s", **fields)
        admitted = self.admission.admit(request)
        assert admitted is not None
        assert request.sampling_params.extra_args == {"saif": admitted.steered}
        self.admission.begin_session(admitted)
        return admitted

    def add(self, admitted: Admitted) -> None:
        request = taken_in(admitted)

        def start() -> None:
            assert get_steered(request.sampling_params) is admitted.placed
            self.running.append(admitted)

        self.admission.add(request, start, lambda: self.resubmitted.append(admitted))

    def drain(self) -> None:
        """Bring back resubmitted requests, as the core does before its next step."""
        while self.resubmitted:
            self.add(self.resubmitted.pop(0))

    def end(self, admitted: Admitted) -> None:
        self.running.remove(admitted)
        admitted.release()

    def values(self, admitted: Admitted) -> list[float]:
        """Return what the workers would add for a request."""
        return [self.slots[slot] for slot in slots_of(admitted)]


def save(folder: Path, n_live: int = 0, **values: float) -> None:
    """Save sets of a vector of one value each, with ``n_live`` live latents."""
    latents = [Latent(index=i, edit=Edit("clamp", 1.0)) for i in range(n_live)]
    rows, column = torch.ones(n_live, 64), torch.ones(n_live)
    for name, value in values.items():
        vector = torch.full((64,), float(value))
        site = SiteTensors(Site(2, latents), rows, column, column, rows, vector)
        LatentSet((site,), 64, 3).save(folder / f"{name}.safetensors")
