"""What a batch is: the samples of one rank's slots of a global batch."""

# B = slots of this rank, T = tasks, D = dense columns

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor


@dataclass(frozen=True)
class Slots:
    """Where this rank's samples stand in the global batch; all that dropout and batch norm may depend on.

    A padding slot has weight 0, empty bags in every feature, and is counted nowhere.
    """

    seed: int
    step: int
    """Number of the step, from 1; 0 in evaluation."""
    first: int
    """Position of this rank's first slot in the global batch."""
    weights: Tensor
    """(B,) float32 sample weights, 0 = padding."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; every rank has the same number of slots."""

    sparse: KeyedJaggedTensor
    """Keys = the schema's categorical features in order, stride B."""
    dense: Tensor
    """(B, D) float32."""
    labels: Tensor
    """(B, T) float32, 0 or 1."""
    slots: Slots

    def to(self, device: torch.device) -> "Batch":
        """Copy to `device`, asynchronously when the memory is pinned."""
        slots = Slots(
            self.slots.seed,
            self.slots.step,
            self.slots.first,
            self.slots.weights.to(device, non_blocking=True),
        )
        return Batch(
            self.sparse.to(device, non_blocking=True),
            self.dense.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            slots,
        )
