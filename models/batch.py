"""What a batch is: the samples of one rank's slots of a global batch."""

# B = slots of this rank, T = tasks, D = dense columns

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    stride: int = 1
    """Positions from one of this rank's slots to the next."""


@dataclass(frozen=True)
class Flaw:
    """Why rows of one row group are skipped: a rule that its column breaks, and the first row that does.

    It says the same on every rank and in every batch that the row group has rows in.
    """

    file: str
    row_group: int
    column: str
    """"*" where the whole row group cannot be decoded."""
    row: int
    """Counted from the row group's first."""
    rule: str
    """The value and what is wrong with it."""

    def __str__(self) -> str:
        place = f"{self.file}: row group {self.row_group}"
        if self.column != "*":
            place += f", column {self.column!r}, row {self.row}"
        return f"{place}: {self.rule}"


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
    skipped: Mapping[Flaw, int] = field(default_factory=dict)
    """Rows that would stand in this rank's slots, but are padding as they broke a rule; each counts once."""

    def to(self, device: torch.device) -> "Batch":
        """Copy to `device`, asynchronously when the memory is pinned; itself if it is there."""
        if self.labels.device == device:
            return self
        slots = Slots(
            self.slots.seed,
            self.slots.step,
            self.slots.first,
            self.slots.weights.to(device, non_blocking=True),
            self.slots.stride,
        )
        return Batch(
            self.sparse.to(device, non_blocking=True),
            self.dense.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            slots,
            self.skipped,
        )

    def every(self, k: int) -> "Batch":
        """The samples at positions 0, k, 2k, ... of the global batch that are in this rank's slots.

        Which samples these are does not depend on the number of ranks, and every rank gets as many slots:
        one that has a sample less gets a padding slot. Not for a batch that is such a share itself.
        What was skipped is counted by the whole batch, not by its share.
        """
        slots = self.slots
        samples = len(slots.weights)
        start = -slots.first % k
        index = torch.arange(start, start + -(-samples // k) * k, k, device=slots.weights.device)
        real = index < samples
        index = index.clamp(max=max(0, samples - 1))
        lengths_FB = self.sparse.lengths().view(len(self.sparse.keys()), samples)
        taken_FB = torch.zeros_like(lengths_FB, dtype=torch.bool)
        taken_FB[:, index[real]] = True
        sparse = KeyedJaggedTensor(
            keys=self.sparse.keys(),
            values=self.sparse.values()[torch.repeat_interleave(taken_FB.view(-1), lengths_FB.view(-1))],
            lengths=(lengths_FB[:, index] * real).view(-1),
        )
        weights = slots.weights[index] * real
        share = Slots(slots.seed, slots.step, slots.first + start, weights, k)
        return Batch(sparse, self.dense[index], self.labels[index], share)
