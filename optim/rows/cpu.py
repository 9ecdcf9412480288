"""Row kernels for CPUs: float32 weights, loops compiled by numba (loops.py).

Rows are found without a sort, and nothing is ever cleared: a row is known when its entry of the scratch points at
a place among the rows found so far and that place holds the row; any other content says nothing. Touched
rows stand in the order in which their table's ids first name them.

One table is one task, so no result depends on the number of threads (torch.get_num_threads()).
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, C = pooled columns

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sparta.optim.rows import loops
from sparta.optim.rows.group import Bags, Group, Rates, Slots, Sum, Touched
from sparta.optim.rows.loops import Bagged, Doubles, Floats, Index, Places
from sparta.optim.rows.rates import packed

_FEW = 2048  # ids or rows for which waking a thread costs more than it saves


class Cpu:
    """See the module and `Kernels`."""

    def touch(self, group: Group, bags: Bags, scratch: Tensor) -> Touched:
        _check(group)
        bagged, first_row, n = _bagged(group, bags), _index(group.layout.first_row), len(bags.ids)
        stamps = scratch.numpy().view(np.uint32)
        rows, counts, slots = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.uint32)
        found = np.empty(len(group.shapes), np.uint64)
        _each(
            bagged.begins, lambda ts: loops.touch(ts, bagged, first_row, stamps, rows, counts, slots, found)
        )
        bounds, packed = np.zeros_like(first_row), np.zeros_like(first_row)
        np.cumsum(found, out=bounds[1:])
        np.cumsum(found * _index(group.layout.dims), out=packed[1:])
        u = int(bounds[-1])
        close = np.empty(u, np.uint64), np.empty(u, np.uint64), np.empty(u, np.uint64)
        _each(bounds, lambda ts: loops.close_up(ts, bagged.begins, bounds, rows, counts, *close))
        close_rows, close_counts, tables = close
        return Touched(
            _tensor(close_rows),
            _tensor(tables),
            _tensor(close_counts),
            _tensor(bounds),
            _tensor(packed),
            slots,
        )

    def catch_up(self, group: Group, touched: Touched, decayed: Tensor, decay: Tensor) -> None:
        at, buffers = _places(group, touched), (_floats(group.weights), _doubles(decayed), _doubles(decay))
        _each(at.bounds, lambda ts: loops.catch_up(ts, at, *buffers))

    def reduce(
        self,
        group: Group,
        bags: Bags,
        touched: Touched,
        pooled: Tensor,
        eta: Tensor | None,
        l2: Tensor | None = None,
    ) -> Sum:
        bagged, at = _bagged(group, bags), _places(group, touched)
        gradient, squares = np.empty(int(at.packed[-1]), np.float32), np.empty(len(at.rows))
        buffers = (
            touched.private,
            _floats(group.weights),
            _floats(bags.weights),
            group.mean,
            _pooled(pooled, bagged),
            _doubles(eta),
            _doubles(l2),
        )
        _each(bagged.begins, lambda ts: loops.reduce(ts, bagged, at, *buffers, gradient, squares))
        return Sum(torch.from_numpy(gradient), torch.from_numpy(squares))

    def perturb(
        self,
        group: Group,
        touched: Touched,
        gradient: Tensor,
        scale: Tensor,
        eta: Tensor | None,
        *,
        step: int,
    ) -> Tensor:
        at = _places(group, touched)
        buffers = _floats(group.weights), _floats(gradient), _doubles(scale), _doubles(eta)
        saved = np.empty(int(at.packed[-1]), np.float32)
        _each(at.bounds, lambda ts: loops.perturb(ts, at, *buffers, saved))
        return torch.from_numpy(saved)

    def restore(self, group: Group, touched: Touched, saved: Tensor) -> None:
        at = _places(group, touched)
        _each(at.bounds, lambda ts: loops.restore(ts, at, _floats(group.weights), _floats(saved)))

    def step(
        self,
        group: Group,
        touched: Touched,
        gradient: Tensor,
        means: Tensor | None,
        saved: Tensor | None,
        rates: Rates,
        slots: Slots,
        *,
        step: int,
    ) -> None:
        at = _places(group, touched)
        each = packed(rates, step).numpy()
        buffers = _floats(group.weights), _floats(gradient), _doubles(means), _floats(saved)
        state = _floats(slots.first), _floats(slots.second), _floats(slots.sums)
        bases, restores = rates.base.numpy(), saved is not None
        _each(at.bounds, lambda ts: loops.step(ts, at, *buffers, restores, bases, each, *state))

    def weight_gradient(self, group: Group, bags: Bags, pooled: Tensor) -> Tensor:
        _check(group)
        bagged, layout = _bagged(group, bags), group.layout
        places = _index(layout.first_element), _index(layout.dims), _index(layout.stored)
        buffers = _floats(group.weights), group.mean, _pooled(pooled, bagged)
        found = np.empty(len(bags.ids), np.float32)
        _each(bagged.begins, lambda ts: loops.weight_gradient(ts, bagged, *places, *buffers, found))
        return torch.from_numpy(found)


CPU = Cpu()


def _check(group: Group) -> None:
    if group.weights.dtype != torch.float32:
        raise ValueError(
            f"weights of {group.weights.dtype}: on a CPU the rows engine steps torch.float32 only"
        )


def _index(x: Tensor) -> Index:
    assert x.dtype == torch.int64
    return x.numpy().view(np.uint64)


def _tensor(x: Index) -> Tensor:
    return torch.from_numpy(x.view(np.int64))


def _floats(x: Tensor | None) -> Floats:
    return np.empty(0, np.float32) if x is None else x.detach().numpy()


def _doubles(x: Tensor | None) -> Doubles:
    return np.empty(0) if x is None else x.numpy()


def _pooled(x: Tensor, bagged: Bagged) -> Floats:
    """(B * C,); autograd may hand over an expanded tensor."""
    assert x.shape == (bagged.samples, bagged.columns)
    return _floats(x.contiguous().view(-1))


def _bagged(group: Group, bags: Bags) -> Bagged:
    layout = group.layout
    first_feature = np.zeros(len(group.shapes) + 1, np.uint64)
    np.cumsum([shape.features for shape in group.shapes], out=first_feature[1:])
    samples = (len(bags.offsets) - 1) // max(len(layout.first_column), 1)
    offsets = _index(bags.offsets)
    begins = offsets[first_feature * np.uint64(samples)]
    return Bagged(
        _index(bags.ids),
        offsets,
        begins,
        first_feature,
        _index(layout.first_column),
        samples,
        group.columns,
    )


def _places(group: Group, touched: Touched) -> Places:
    layout = group.layout
    return Places(
        *map(_index, (layout.first_row, layout.first_element, layout.dims, layout.stored)),
        *map(_index, (touched.rows, touched.bounds, touched.packed)),
    )


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Threads of this process; a fork inherits none."""
    return ThreadPoolExecutor(count, thread_name_prefix="rows")


def _each(bounds: Index, work: Callable[[Index], None]) -> None:
    """Run `work` on all tables, shared out over the threads by what stands between their bounds."""
    sizes = np.diff(bounds)
    threads = min(torch.get_num_threads(), len(sizes))
    if threads < 2 or int(bounds[-1]) < _FEW:
        work(np.arange(len(sizes), dtype=np.uint64))
        return
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = [0] * threads
    for table in np.argsort(sizes)[::-1].tolist():
        least = loads.index(min(loads))
        shares[least].append(table)
        loads[least] += int(sizes[table])
    mine, *others = [np.array(share, np.uint64) for share in shares]
    pool = _threads(os.getpid(), threads - 1)
    running = [pool.submit(work, other) for other in others]
    work(mine)
    for one in running:
        one.result()
