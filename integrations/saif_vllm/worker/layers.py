"""Hooked layers of a worker, and everything else that steers in it."""

from __future__ import annotations

from torch import Tensor

from saif_fast.banks import LayerBanks
from saif_kernels import SteeringBank, steer_
from saif_vllm.worker.batch import BatchTables


class HookedLayer:
    """The bank of one hooked layer, and where the layer leaves its evidence of steering.

    Args:
        bank: latents and vectors of all loaded sets.
        batch: the current batch.
        index: of this layer in the tally.
        max_dose: cap on ``|change| / |x|`` per token; None: no cap.
    """

    def __init__(
        self, bank: SteeringBank, batch: BatchTables, index: int, max_dose: float | None
    ) -> None:
        self.bank, self.batch, self.index, self.max_dose = bank, batch, index, max_dose
        self.dose = batch.proof.tally.dose[index]

    def steer(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer ``hidden`` [T, d_model] in place; called by the op."""
        batch = self.batch
        if batch.capture is not None:
            batch.capture.keep(self.index, hidden, residual)
        steer_(
            hidden,
            residual,
            self.bank,
            batch.rows,
            batch.token_row,
            batch.token_scale,
            dose=self.dose,
            max_dose=self.max_dose,
        )


class WorkerSteering:
    """Everything that steers in one worker.

    Args:
        tables: the banks of the layers that this pipeline rank owns.
        batch: the current batch.
        max_dose: as for :class:`HookedLayer`.
    """

    def __init__(self, tables: LayerBanks, batch: BatchTables, max_dose: float | None) -> None:
        self.tables, self.batch = tables, batch
        self.layers = {
            layer: HookedLayer(bank, batch, i, max_dose)
            for i, (layer, bank) in enumerate(tables.banks.items())
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that is allocated at start and keeps its memory, by name."""
        banks = {
            f"layers.{layer}.{name}": table
            for layer, bank in self.tables.banks.items()
            for name, table in bank._asdict().items()
        }
        return banks | self.batch.tensors()

    @property
    def nbytes(self) -> int:
        """Memory of all tables in bytes."""
        return sum(table.nbytes for table in self.tensors().values())
