"""Row kernels for CPUs in numba: float32 weights.

Rows are found without a sort, and nothing is ever cleared: a row is known when its entry of the scratch points at
a place among the rows found so far and that place holds the row; any other content says nothing. Touched
rows stand in the order in which their table's ids first name them.

One table is one task, so no result depends on the number of threads (torch.get_num_threads()).
Indices are unsigned: numba asks every signed one whether it counts from the end, and those questions kept the
loops over columns from becoming vector instructions (benchmarks/kernels.py has the figures).
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, C = pooled columns

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparta.optim.rows.group import BASES, Bags, Group, Rates, Slots, Sum, Touched

Index: TypeAlias = NDArray[np.uint64]
Small: TypeAlias = NDArray[np.uint32]
Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

_ADAM, _ROWWISE = BASES.index("adam"), BASES.index("rowwise_adagrad")
_ONE = np.uint64(1)  # numba makes a float of an unsigned and a signed integer
_FEW = 2048  # ids or rows for which waking a thread costs more than it saves


class Bagged(NamedTuple):
    """Where ids stand, and where the gradient of each bag."""

    ids: Index
    offsets: Index
    begins: Index
    """(T + 1,) where each table's ids begin."""
    first_feature: Index
    """(T + 1,)"""
    first_column: Index
    """(F,)"""
    samples: int
    columns: int


class Places(NamedTuple):
    """Where the touched rows are; see Layout and Touched."""

    first_row: Index
    first_element: Index
    dims: Index
    stored: Index
    rows: Index
    bounds: Index
    packed: Index


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the GIL; kept on disk unless no folder can be written, as in a read-only pod."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@compiled
def _touch(
    tables: Index,
    bagged: Bagged,
    first_row: Index,
    scratch: Small,
    rows: Index,  # (n,): each table's from where its ids begin; counts likewise
    counts: Index,
    slots: Small,  # (n,): which of its table's touched rows an id names
    found: Index,  # (T,)
) -> None:
    for t in tables:
        begin, end = bagged.begins[t], bagged.begins[t + _ONE]
        known = begin - begin
        for i in range(begin, end):
            row = first_row[t] + bagged.ids[i]
            slot = np.uint64(scratch[row])
            if slot >= known or rows[begin + slot] != row:
                slot = known
                known += _ONE
                scratch[row] = slot
                rows[begin + slot] = row
                counts[begin + slot] = 0
            counts[begin + slot] += _ONE
            slots[i] = slot
        found[t] = known


@compiled
def _close_up(
    tables: Index,
    begins: Index,
    bounds: Index,
    rows: Index,
    counts: Index,
    close_rows: Index,
    close_counts: Index,
    close_tables: Index,
) -> None:
    for t in tables:
        gap = begins[t] - bounds[t]
        for u in range(bounds[t], bounds[t + _ONE]):
            close_rows[u] = rows[u + gap]
            close_counts[u] = counts[u + gap]
            close_tables[u] = t


@compiled
def _reduce(
    tables: Index,
    bagged: Bagged,
    at: Places,
    slots: Small,
    weights: Floats,
    id_weights: Floats,  # (n,), or empty
    mean: bool,
    pooled: Floats,  # (B * C,)
    eta: Doubles,  # (T,), or empty
    gradient: Floats,
    squares: Doubles,
) -> None:
    samples, columns = np.uint64(bagged.samples), np.uint64(bagged.columns)
    for t in tables:
        dim, begin = at.dims[t], at.packed[t]
        unseen = begin  # slots are numbered as they are first seen, so memory need not be cleared
        for feature in range(bagged.first_feature[t], bagged.first_feature[t + _ONE]):
            for sample in range(samples):
                bag = feature * samples + sample
                first, end = bagged.offsets[bag], bagged.offsets[bag + _ONE]
                source = sample * columns + bagged.first_column[feature]
                share = np.float32(1) / np.float32(end - first) if mean and end > first else np.float32(1)
                for i in range(first, end):
                    factor = share * id_weights[i] if id_weights.size else share
                    target = begin + slots[i] * dim
                    if target == unseen:
                        unseen += dim
                        for d in range(dim):
                            gradient[target + d] = factor * pooled[source + d]
                    else:
                        for d in range(dim):
                            gradient[target + d] += factor * pooled[source + d]
        adaptive = eta.size and eta[t] >= 0
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = begin + (u - at.bounds[t]) * dim
            place = at.first_element[t] + (at.rows[u] - at.first_row[t]) * at.stored[t]
            square = 0.0
            for d in range(dim):
                g = np.float64(gradient[source + d])
                if adaptive:
                    g = g * (np.abs(np.float64(weights[place + d])) + eta[t])
                square += g * g
            squares[u] = square


@compiled
def _perturb(
    tables: Index,
    at: Places,
    weights: Floats,
    gradient: Floats,
    scale: Doubles,
    eta: Doubles,  # (T,), or empty
    saved: Floats,
) -> None:
    for t in tables:
        dim = at.dims[t]
        adaptive = eta.size and eta[t] >= 0
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = at.packed[t] + (u - at.bounds[t]) * dim
            place = at.first_element[t] + (at.rows[u] - at.first_row[t]) * at.stored[t]
            for d in range(dim):
                saved[source + d] = weights[place + d]
            factor = scale[u]
            if factor == 0:
                continue
            for d in range(dim):
                w = saved[source + d]
                each = factor
                if adaptive:
                    size = np.abs(np.float64(w)) + eta[t]
                    each = factor * size * size
                weights[place + d] = w + np.float32(each * np.float64(gradient[source + d]))


@compiled
def _restore(tables: Index, at: Places, weights: Floats, saved: Floats) -> None:
    for t in tables:
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = at.packed[t] + (u - at.bounds[t]) * at.dims[t]
            place = at.first_element[t] + (at.rows[u] - at.first_row[t]) * at.stored[t]
            for d in range(at.dims[t]):
                weights[place + d] = saved[source + d]


@compiled
def _step(
    tables: Index,
    at: Places,
    weights: Floats,
    gradient: Floats,
    means: Doubles,
    saved: Floats,
    restores: bool,
    bases: NDArray[np.int64],
    rates: Doubles,  # (T, 6): lr, eps, both betas, both bias corrections
    firsts: Floats,
    seconds: Floats,
    sums: Floats,
) -> None:
    for t in tables:
        dim, lr, eps = at.dims[t], rates[t, 0], rates[t, 1]
        beta1, rest1 = np.float32(rates[t, 2]), np.float32(1 - rates[t, 2])
        beta2, rest2 = np.float32(rates[t, 3]), np.float32(1 - rates[t, 3])
        rate, root = np.float32(lr / rates[t, 4]), np.float32(1 / np.sqrt(rates[t, 5]))
        small = np.float32(eps)
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = at.packed[t] + (u - at.bounds[t]) * dim
            place = at.first_element[t] + (at.rows[u] - at.first_row[t]) * at.stored[t]
            if restores:
                for d in range(dim):
                    weights[place + d] = saved[source + d]
            if bases[t] == _ADAM:
                for d in range(dim):
                    g = gradient[source + d]
                    first = beta1 * firsts[place + d] + rest1 * g
                    second = beta2 * seconds[place + d] + rest2 * g * g
                    firsts[place + d] = first
                    seconds[place + d] = second
                    weights[place + d] -= rate * first / (np.sqrt(second) * root + small)
            else:
                factor = lr
                if bases[t] == _ROWWISE:
                    total = np.float32(np.float64(sums[at.rows[u]]) + means[u])
                    sums[at.rows[u]] = total
                    factor = lr / (np.sqrt(np.float64(total)) + eps)
                for d in range(dim):
                    weights[place + d] -= np.float32(factor * np.float64(gradient[source + d]))


@compiled
def _weight_gradient(
    tables: Index,
    bagged: Bagged,
    first_element: Index,
    dims: Index,
    stored: Index,
    weights: Floats,
    mean: bool,
    pooled: Floats,
    found: Floats,  # (n,)
) -> None:
    samples, columns = np.uint64(bagged.samples), np.uint64(bagged.columns)
    for t in tables:
        for feature in range(bagged.first_feature[t], bagged.first_feature[t + _ONE]):
            for sample in range(samples):
                bag = feature * samples + sample
                first, end = bagged.offsets[bag], bagged.offsets[bag + _ONE]
                source = sample * columns + bagged.first_column[feature]
                for i in range(first, end):
                    place = first_element[t] + bagged.ids[i] * stored[t]
                    total = 0.0
                    for d in range(dims[t]):
                        total += np.float64(pooled[source + d]) * np.float64(weights[place + d])
                    found[i] = total / np.float64(end - first) if mean else total


class Cpu:
    """See the module and `Kernels`."""

    def touch(self, group: Group, bags: Bags, scratch: Tensor) -> Touched:
        _check(group)
        bagged, first_row, n = _bagged(group, bags), _index(group.layout.first_row), len(bags.ids)
        stamps = scratch.numpy().view(np.uint32)
        rows, counts, slots = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.uint32)
        found = np.empty(len(group.shapes), np.uint64)
        _each(bagged.begins, lambda ts: _touch(ts, bagged, first_row, stamps, rows, counts, slots, found))
        bounds, packed = np.zeros_like(first_row), np.zeros_like(first_row)
        np.cumsum(found, out=bounds[1:])
        np.cumsum(found * _index(group.layout.dims), out=packed[1:])
        u = int(bounds[-1])
        close = np.empty(u, np.uint64), np.empty(u, np.uint64), np.empty(u, np.uint64)
        _each(bounds, lambda ts: _close_up(ts, bagged.begins, bounds, rows, counts, *close))
        rows, counts, tables = close
        vectors = (torch.from_numpy(x.view(np.int64)) for x in (rows, tables, counts, bounds, packed))
        return Touched(*vectors, private=slots)

    def reduce(self, group: Group, bags: Bags, touched: Touched, pooled: Tensor, eta: Tensor | None) -> Sum:
        bagged, at = _bagged(group, bags), _places(group, touched)
        gradient, squares = np.empty(int(at.packed[-1]), np.float32), np.empty(len(at.rows))
        buffers = (
            touched.private,
            _floats(group.weights),
            _floats(bags.weights),
            group.mean,
            _floats(pooled.contiguous().view(-1)),
            _doubles(eta),
        )
        _each(bagged.begins, lambda ts: _reduce(ts, bagged, at, *buffers, gradient, squares))
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
        _each(at.bounds, lambda ts: _perturb(ts, at, *buffers, saved))
        return torch.from_numpy(saved)

    def restore(self, group: Group, touched: Touched, saved: Tensor) -> None:
        at = _places(group, touched)
        _each(at.bounds, lambda ts: _restore(ts, at, _floats(group.weights), _floats(saved)))

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
        each = torch.cat(
            [rates.lr[:, None], rates.eps[:, None], rates.betas, 1 - rates.betas**step], dim=1
        ).numpy()
        buffers = _floats(group.weights), _floats(gradient), _doubles(means), _floats(saved)
        state = _floats(slots.first), _floats(slots.second), _floats(slots.sums)
        bases, restores = rates.base.numpy(), saved is not None
        _each(at.bounds, lambda ts: _step(ts, at, *buffers, restores, bases, each, *state))

    def weight_gradient(self, group: Group, bags: Bags, pooled: Tensor) -> Tensor:
        _check(group)
        bagged, layout = _bagged(group, bags), group.layout
        places = _index(layout.first_element), _index(layout.dims), _index(layout.stored)
        buffers = _floats(group.weights), group.mean, _floats(pooled.contiguous().view(-1))
        found = np.empty(len(bags.ids), np.float32)
        _each(bagged.begins, lambda ts: _weight_gradient(ts, bagged, *places, *buffers, found))
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


def _floats(x: Tensor | None) -> Floats:
    return np.empty(0, np.float32) if x is None else x.detach().numpy()


def _doubles(x: Tensor | None) -> Doubles:
    return np.empty(0) if x is None else x.numpy()


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
