"""data_parallel tables: every rank holds all rows, looks up its own samples, and steps every row that any rank touched.

DistributedDataParallel would send a gradient of the table's size. Here the ranks exchange the ids they touched,
each once, and sum the gradients of those rows: O(touched). All ranks then take the same step from the same
numbers, so replicas stay equal to the bit. These tables are small and few: plain torch, a loop over tables.
"""

# T = tables of the group, u = touched rows, of this rank or of all

from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from sparta.optim.rows.group import Sum, Touched
from sparta.sharding.collectives import ranks, total
from sparta.sharding.rows.call import Call


class ReplicaCall(Call):
    """A rank's ids at a replicated bag; `touched` and `reduce` are those of all ranks together."""

    @cached_property
    def _mine(self) -> Touched:
        return self.learner.kernels.touch(self.learner.group, self.bags, self.learner.stamps)

    @cached_property
    def touched(self) -> Touched:
        """Rows that any rank touched in ascending order, with the occurrences on all ranks; collective."""
        mine = self._mine
        if ranks() == 1:
            return mine
        layout = self.learner.group.layout
        real = int(mine.bounds[-1])
        both = _gathered(torch.stack([mine.rows[:real], mine.counts[:real]]))
        rows, where = torch.unique(both[0], return_inverse=True)
        counts = torch.zeros_like(rows).index_add_(0, where, both[1])
        bounds = torch.searchsorted(rows, layout.first_row)
        sizes = (bounds[1:] - bounds[:-1]) * layout.dims
        packed = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        tables = torch.searchsorted(layout.first_row[1:], rows, right=True)
        return Touched(rows, tables, counts, bounds, packed, None)

    def reduce(self, *, ascending: bool) -> Sum:
        """The gradient of each row that any rank touched, averaged over the ranks as TorchRec does; collective."""
        mine, all_ranks = self._mine, self.touched
        if ranks() == 1:
            return super().reduce(ascending=ascending)
        part = self._reduced(mine, None, ascending=ascending)
        gradient = part.gradient.new_zeros(int(all_ranks.packed[-1]))
        where = torch.searchsorted(all_ranks.rows, mine.rows)
        for table, shape in enumerate(self.learner.group.shapes):
            ours, theirs = _span(mine.bounds, table), _span(all_ranks.bounds, table)
            values = _rows_of(part.gradient, mine, table, shape.dim)
            _rows_of(gradient, all_ranks, table, shape.dim)[where[ours] - theirs.start] = values
        total(gradient).div_(ranks())
        if self.learner.l2 is not None:
            for table, shape in enumerate(self.learner.group.shapes):
                penalty = self.learner.l2[table] * self._weights(all_ranks, table).double()
                _rows_of(gradient, all_ranks, table, shape.dim).add_(penalty.float())
        return Sum(gradient, self._squares(all_ranks, gradient, ascending=ascending))

    def _squares(self, touched: Touched, gradient: Tensor, *, ascending: bool) -> Tensor:
        group, eta = self.learner.group, self.learner.eta
        squares = torch.zeros(len(touched.rows), dtype=torch.float64, device=gradient.device)
        for table, shape in enumerate(group.shapes):
            values = _rows_of(gradient, touched, table, shape.dim).double()
            if ascending and eta is not None and float(eta[table]) >= 0:
                values = values * (self._weights(touched, table).double().abs() + eta[table])
            squares[_span(touched.bounds, table)] = values.square().sum(1)
        return squares

    def _weights(self, touched: Touched, table: int) -> Tensor:
        """(u_t, D) of a table's touched rows as they are now."""
        group, shape = self.learner.group, self.learner.group.shapes[table]
        first = int(group.layout.first_element[table])
        weights = group.weights[first : first + shape.rows * shape.stored].view(-1, shape.stored)
        local = touched.rows[_span(touched.bounds, table)] - group.layout.first_row[table]
        return weights[local, : shape.dim]


def _span(bounds: Tensor, table: int) -> slice:
    return slice(int(bounds[table]), int(bounds[table + 1]))


def _rows_of(packed: Tensor, touched: Touched, table: int, dim: int) -> Tensor:
    """A table's values in a packed buffer: a view (u_t, D)."""
    return packed[_span(touched.packed, table)].view(-1, dim)


def _gathered(mine: Tensor) -> Tensor:
    """Columns of all ranks' (2, u) tensors, in the order of the ranks."""
    sizes = torch.zeros(ranks(), dtype=torch.int64, device=mine.device)
    sizes[dist.get_rank()] = mine.shape[1]
    longest = int(total(sizes).max())
    padded = mine.new_zeros(2, longest)
    padded[:, : mine.shape[1]] = mine
    parts = [torch.empty_like(padded) for _ in range(ranks())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:, : int(size)] for part, size in zip(parts, sizes, strict=True)], dim=1)
