"""Decoupled weight decay in O(touched): a row pays what it owes when it is looked up, all rows when all are read.

AdamW (Loshchilov and Hutter, ICLR 2019) multiplies every row by `1 - lr_t weight_decay` in every step, before the base
optimizer steps from it. Here a table keeps minus the log of the product so far, which grows in every step that was
taken, and each row that number as of its last payment: the difference is what the row owes, whatever the schedule
was meanwhile. Rows pay before a batch looks them up, so both passes see them as they would be; those of the batch
again when the step is taken, from the restored weights and before the base optimizer: the ascent is not decayed.

A payment does not change what the weights mean, so a refused step may leave it. It rounds, though, once for all the
steps a row was away, where AdamW rounds in each; and a run that is evaluated or saved elsewhere pays elsewhere, so
it differs by roundings. After `settle` nothing is owed and the count begins at 0 again: nothing of it is saved.
"""

# T = tables of the group, u = touched rows

from collections.abc import Iterator

import torch
from torch import Tensor

from sparta.optim.rows.group import Group, Kernels, Touched

BLOCK = 1 << 20
"""Rows that `settle` goes over at a time."""


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
        self._owing = False

    def advance(self, lr: Tensor) -> None:
        """A step was taken at these rates, (T,) float64 on the host: from now on every row owes its decay."""
        self._log -= torch.log1p(-lr * self._rates).to(self._log.device, non_blocking=True)
        self._owing = True

    def catch_up(self, touched: Touched) -> None:
        """Have the rows of a batch pay."""
        self._kernels.catch_up(self._group, touched, self._paid, self._log)

    def settle(self) -> None:
        """Have all rows pay; costs as much as the tables are large, and nothing if no step came since the last."""
        if self._owing:
            for block in _blocks(self._group):
                self.catch_up(block)
            self._log.zero_()
            self._paid.zero_()
            self._owing = False


def _blocks(group: Group) -> Iterator[Touched]:
    """All rows, as batches that touch each once."""
    first_row = group.layout.first_row
    for begin in range(0, group.rows, BLOCK):
        rows = torch.arange(begin, min(begin + BLOCK, group.rows), device=first_row.device)
        bounds = first_row.clamp(begin, begin + len(rows)) - begin
        tables = torch.searchsorted(first_row, rows, right=True) - 1
        packed = torch.cat([bounds.new_zeros(1), (bounds.diff() * group.layout.dims).cumsum(0)])
        yield Touched(rows, tables, torch.ones_like(rows), bounds, packed, None)
