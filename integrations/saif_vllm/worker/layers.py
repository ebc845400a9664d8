"""All that steers in one worker."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from saif_fast.slots import Placement
from saif_fast.tables import SteeringTables
from saif_kernels import LatentEdits, SteeringBank, steer_
from saif_vllm.worker.step import StepTables


class LayerSteering:
    """The bank of one hooked layer, and where the layer's evidence of steering goes.

    Args:
        bank: latents and vectors of all loaded sets.
        step: the current batch.
        index: of this layer in the step's tally.
        max_dose: cap on ``|change| / |x|`` of a token; None: none.
    """

    def __init__(
        self, bank: SteeringBank, step: StepTables, index: int, max_dose: float | None
    ) -> None:
        self.bank, self.step, self.index, self.max_dose = bank, step, index, max_dose
        self.dose = step.proof.tally.dose[index]

    def steer(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer ``hidden`` [T, d_model] in place; called by the op."""
        step = self.step
        if step.capture is not None:
            step.capture.keep(self.index, hidden, residual)
        steer_(
            hidden,
            residual,
            self.bank,
            step.rows,
            step.token_row,
            step.token_scale,
            dose=self.dose,
            max_dose=self.max_dose,
        )


class Steering:
    """Tables and step of one worker.

    Args:
        tables: of the layers that this pipeline rank owns.
        step: the current batch.
        max_dose: as for :class:`LayerSteering`.
    """

    def __init__(self, tables: SteeringTables, step: StepTables, max_dose: float | None) -> None:
        self.tables, self.step = tables, step
        self.layers = {
            layer: LayerSteering(bank, step, i, max_dose)
            for i, (layer, bank) in enumerate(tables.banks.items())
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that is allocated at start and keeps its memory, by name."""
        banks = {
            f"layers.{layer}.{name}": table
            for layer, bank in self.tables.banks.items()
            for name, table in bank._asdict().items()
        }
        return banks | self.step.tensors()

    @property
    def nbytes(self) -> int:
        """Memory of all tables in bytes."""
        return sum(table.nbytes for table in self.tensors().values())

    def write(self, placement: Placement, compiled: Mapping[int, LatentEdits]) -> None:
        """Load a set; no request of a running batch uses its slot."""
        self.tables.write(placement, compiled)
