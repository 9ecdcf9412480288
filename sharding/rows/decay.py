"""Decoupled weight decay in O(touched): a row pays what it owes when it is looked up, all rows when all are read.

AdamW (Loshchilov and Hutter, ICLR 2019) multiplies every row by `1 - lr_t weight_decay` in every step, before the base
optimizer steps from it. Here a table keeps the log of the product so far, negated, which grows in every step that was
taken, and each row that number as of its last payment: the difference is what the row owes, whatever the schedule
was meanwhile. Rows pay before a batch looks them up, so both passes see them as they would be; those of the batch
again when the step is taken, from the restored weights and before the base optimizer: the ascent is not decayed.

A payment does not change what the weights mean, so a refused step may leave it. It rounds, though, once for all the
steps a row was away, where AdamW rounds in each: when rows pay is part of a run's numbers. An evaluation has all rows
pay (`settle`). A checkpoint has none: what they owe is saved beside the weights as they are.
"""

# T = tables of the group, u = touched rows

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sparta.optim.rows.group import Group, Kernels, Touched

BLOCK = 1 << 20
"""Rows that `settle` goes over at a time."""

GRAIN = 2.0**-44
"""Logs are multiples of this, so their sums and differences are exact, and where the count begins anew does not show.

Above 512 a float64 has no such multiples: a row that owes so much may differ in its last bit, but it is 0 in float32.
It takes two million steps until what is rounded away of the logs comes near the last bit of a float32.
"""

FAR = 256.0
"""Where the count of a table begins anew."""


class Decay:
    """The weight decay of one bag's tables.

    Args:
        rates: weight_decay of each of the T tables.
    """

    def __init__(self, rates: list[float], group: Group, kernels: Kernels) -> None:
        device = group.weights.device
        self._rates = torch.tensor(rates, dtype=torch.float64)
        self._group = group
        self._kernels = kernels
        self._log = torch.zeros(len(rates), dtype=torch.float64, device=device)
        self._paid = torch.zeros(group.rows, dtype=torch.float64, device=device)
        self._largest = 0.0  # not below any log, and known without asking the device
        self._owing = False

    def advance(self, lr: Tensor) -> None:
        """A step was taken at these rates, (T,) float64 on the host: from now on every row owes its decay."""
        grown = (torch.log1p(-lr * self._rates) / -GRAIN).round() * GRAIN
        self._largest += float(grown.max())
        self._log += grown.to(self._log.device, non_blocking=True)
        self._owing = True
        if self._largest > FAR:
            self._begin_anew()

    def catch_up(self, touched: Touched) -> None:
        """Have the rows of a batch pay."""
        self._kernels.catch_up(self._group, touched, self._paid, self._log)

    def settle(self) -> None:
        """Have all rows pay; costs as much as the tables are large, and nothing if no step came since the last."""
        if self._owing:
            for block in _blocks(self._group):
                self.catch_up(block)
            self._begin_anew()
            self._owing = False

    def pending(self) -> Tensor:
        """(rows,) float64: log of what each row is still to be multiplied by; live until the next step.

        A state that is loaded is written into it.
        """
        self._begin_anew()
        self._owing = True
        return self._paid

    def _begin_anew(self) -> None:
        """Count from 0 on; nobody pays, and everybody owes what he did."""
        if self._largest:
            bounds = self._group.layout.first_row.tolist()
            for table, (begin, end) in enumerate(pairwise(bounds)):
                self._paid[begin:end] -= self._log[table]
            self._log.zero_()
            self._largest = 0.0


def _blocks(group: Group) -> Iterator[Touched]:
    """All rows, as batches that touch each once."""
    first_row = group.layout.first_row
    for begin in range(0, group.rows, BLOCK):
        rows = torch.arange(begin, min(begin + BLOCK, group.rows), device=first_row.device)
        bounds = first_row.clamp(begin, begin + len(rows)) - begin
        tables = torch.searchsorted(first_row, rows, right=True) - 1
        packed = torch.cat([bounds.new_zeros(1), (bounds.diff() * group.layout.dims).cumsum(0)])
        yield Touched(rows, tables, torch.ones_like(rows), bounds, packed, None)
