"""Row kernels for the CPU in numba; float32.

Rows are found without a sort: a persistent int32 per row says where it may stand among the touched ones, and it
does stand there if that place holds this row. So the stamps are never cleared and may hold anything.
Tables are independent: threads share them out, and no result depends on how many threads there are.
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, D = a table's logical columns

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from sparta.optim.rows.group import Bags, Group, Rates, Slots, Sum, Touched

SGD, ADAM, ROWWISE_ADAGRAD = range(3)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, kept on disk where there is a folder to write to (not so in a read-only pod)."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def _touch(tables, ids, begins, first_row, stamps, rows, counts, places, found):
    for t in tables:
        begin, base, u = begins[t], first_row[t], 0
        for i in range(begin, begins[t + 1]):
            row = base + ids[i]
            place = stamps[row]
            if place < 0 or place >= u or rows[begin + place] != row:
                place = u
                stamps[row] = u
                rows[begin + u] = row
                counts[begin + u] = 0
                u += 1
            counts[begin + place] += 1
            places[i] = place
        found[t] = u


@compiled
def _reduce(
    tables,
    offsets,
    weights,
    mean,
    places,
    first_feature,
    first_column,
    samples,
    pooled,
    dims,
    bounds,
    packed,
    gradient,
    squares,
):
    weighted = len(weights) > 0
    for t in tables:
        dim, base = dims[t], packed[t]
        for f in range(first_feature[t], first_feature[t + 1]):
            column = first_column[f]
            for b in range(samples):
                begin, end = offsets[f * samples + b], offsets[f * samples + b + 1]
                share = np.float32(1.0) / np.float32(max(end - begin, 1)) if mean else np.float32(1.0)
                for i in range(begin, end):
                    row = base + places[i] * dim
                    factor = weights[i] if weighted else share
                    for d in range(dim):
                        gradient[row + d] += factor * pooled[b, column + d]
        for u in range(bounds[t], bounds[t + 1]):
            row = base + (u - bounds[t]) * dim
            square = 0.0
            for d in range(dim):
                value = np.float64(gradient[row + d])
                square += value * value
            squares[u] = square


@compiled
def _adaptive_squares(
    tables, eta, rows, first_row, first_element, dims, stored, bounds, packed, weights, gradient, squares
):
    for t in tables:
        if eta[t] < 0:
            continue
        for u in range(bounds[t], bounds[t + 1]):
            row = packed[t] + (u - bounds[t]) * dims[t]
            at = first_element[t] + (rows[u] - first_row[t]) * stored[t]
            square = 0.0
            for d in range(dims[t]):
                value = (abs(np.float64(weights[at + d])) + eta[t]) * np.float64(gradient[row + d])
                square += value * value
            squares[u] = square


@compiled
def _perturb(
    tables, eta, scale, rows, first_row, first_element, dims, stored, bounds, packed, weights, gradient, saved
):
    adaptive = len(eta) > 0
    for t in tables:
        scaled = adaptive and eta[t] >= 0
        for u in range(bounds[t], bounds[t + 1]):
            row = packed[t] + (u - bounds[t]) * dims[t]
            at = first_element[t] + (rows[u] - first_row[t]) * stored[t]
            factor = scale[u]
            for d in range(dims[t]):
                saved[row + d] = weights[at + d]
            if factor == 0:
                continue
            if scaled:
                for d in range(dims[t]):
                    size = abs(np.float64(weights[at + d])) + eta[t]
                    weights[at + d] += np.float32(factor * (size * size) * np.float64(gradient[row + d]))
            else:
                for d in range(dims[t]):
                    weights[at + d] += np.float32(factor * np.float64(gradient[row + d]))


@compiled
def _restore(tables, rows, first_row, first_element, dims, stored, bounds, packed, weights, saved):
    for t in tables:
        for u in range(bounds[t], bounds[t + 1]):
            row = packed[t] + (u - bounds[t]) * dims[t]
            at = first_element[t] + (rows[u] - first_row[t]) * stored[t]
            for d in range(dims[t]):
                weights[at + d] = saved[row + d]


@compiled
def _step(
    tables,
    base,
    lr,
    eps,
    betas,
    number,
    rows,
    first_row,
    first_element,
    dims,
    stored,
    bounds,
    packed,
    weights,
    gradient,
    saved,
    means,
    first,
    second,
    sums,
):
    restores = len(saved) > 0
    for t in tables:
        dim = dims[t]
        beta1, beta2 = np.float32(betas[t, 0]), np.float32(betas[t, 1])
        rest1, rest2 = np.float32(1 - betas[t, 0]), np.float32(1 - betas[t, 1])
        correction1 = 1 - betas[t, 0] ** number
        root2 = np.float32(np.sqrt(1 - betas[t, 1] ** number))
        rate = np.float32(lr[t] / correction1) if base[t] == ADAM else np.float32(lr[t])
        small = np.float32(eps[t])
        for u in range(bounds[t], bounds[t + 1]):
            row = packed[t] + (u - bounds[t]) * dim
            at = first_element[t] + (rows[u] - first_row[t]) * stored[t]
            if restores:
                for d in range(dim):
                    weights[at + d] = saved[row + d]
            if base[t] == ADAM:
                for d in range(dim):
                    g = gradient[row + d]
                    m = beta1 * first[at + d] + rest1 * g
                    v = beta2 * second[at + d] + rest2 * (g * g)
                    first[at + d] = m
                    second[at + d] = v
                    weights[at + d] -= rate * m / (np.sqrt(v) / root2 + small)
            else:
                factor = rate
                if base[t] == ROWWISE_ADAGRAD:
                    total = sums[rows[u]] + np.float32(means[u])
                    sums[rows[u]] = total
                    factor = rate / (np.sqrt(total) + small)
                for d in range(dim):
                    weights[at + d] -= factor * gradient[row + d]


@compiled
def _weight_gradient(
    ids, offsets, samples, table_of_feature, first_element, first_column, dims, stored, pooled, weights, out
):
    for f in range(len(table_of_feature)):
        t = table_of_feature[f]
        for b in range(samples):
            for i in range(offsets[f * samples + b], offsets[f * samples + b + 1]):
                at = first_element[t] + ids[i] * stored[t]
                total = np.float32(0)
                for d in range(dims[t]):
                    total += weights[at + d] * pooled[b, first_column[f] + d]
                out[i] = total


_NONE = np.zeros(0, dtype=np.float32)
_NONE64 = np.zeros(0)


class Cpu:
    """See the module and `Kernels`."""

    def touch(self, group: Group, bags: Bags, scratch: Tensor) -> Touched:
        if group.weights.dtype != torch.float32:
            raise ValueError(
                f"the CPU steps tables of float32, not {group.weights.dtype}; keep such tables on a GPU"
            )
        n, tables = len(bags.ids), len(group.shapes)
        layout, begins = _numbers(group), bags.offsets.numpy()[_first_features(group) * _samples(group, bags)]
        rows, counts = np.empty(n, np.int64), np.empty(n, np.int64)
        places, found = np.empty(n, np.int32), np.zeros(tables, np.int64)
        _each(
            _shares(begins),
            lambda some: _touch(
                some, bags.ids.numpy(), begins, layout[0], scratch.numpy(), rows, counts, places, found
            ),
        )
        bounds = np.concatenate([[0], found.cumsum()])
        packed = np.concatenate([[0], (found * layout[2]).cumsum()])
        u = np.arange(bounds[-1]) + np.repeat(begins[:-1] - bounds[:-1], found)
        return Touched(
            torch.from_numpy(rows[u]),
            torch.from_numpy(np.repeat(np.arange(tables), found)),
            torch.from_numpy(counts[u]),
            torch.from_numpy(bounds),
            torch.from_numpy(packed),
            (places, _shares(begins)),
        )

    def reduce(self, group: Group, bags: Bags, touched: Touched, pooled: Tensor, eta: Tensor | None) -> Sum:
        places, shares = touched.private
        first_row, first_element, dims, stored, first_column = _numbers(group)
        bounds, packed = touched.bounds.numpy(), touched.packed.numpy()
        gradient, squares = np.zeros(packed[-1], np.float32), np.empty(bounds[-1])
        weights = _NONE if bags.weights is None else bags.weights.numpy()
        _each(
            shares,
            lambda some: _reduce(
                some,
                bags.offsets.numpy(),
                weights,
                group.mean,
                places,
                _first_features(group),
                first_column,
                _samples(group, bags),
                pooled.numpy(),
                dims,
                bounds,
                packed,
                gradient,
                squares,
            ),
        )
        if eta is not None:
            _each(
                shares,
                lambda some: _adaptive_squares(
                    some,
                    eta.numpy(),
                    touched.rows.numpy(),
                    first_row,
                    first_element,
                    dims,
                    stored,
                    bounds,
                    packed,
                    group.weights.numpy(),
                    gradient,
                    squares,
                ),
            )
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
        saved = torch.empty_like(gradient)
        eta_T = _NONE64 if eta is None else eta.numpy()
        _each(
            _parts(touched),
            lambda some: _perturb(
                some,
                eta_T,
                scale.numpy(),
                *_where(group, touched),
                group.weights.numpy(),
                gradient.numpy(),
                saved.numpy(),
            ),
        )
        return saved

    def restore(self, group: Group, touched: Touched, saved: Tensor) -> None:
        _each(
            _parts(touched),
            lambda some: _restore(some, *_where(group, touched), group.weights.numpy(), saved.numpy()),
        )

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
        _each(
            _parts(touched),
            lambda some: _step(
                some,
                rates.base.numpy(),
                rates.lr.numpy(),
                rates.eps.numpy(),
                rates.betas.numpy(),
                step,
                *_where(group, touched),
                group.weights.numpy(),
                gradient.numpy(),
                *(_NONE if x is None else x.numpy() for x in (saved,)),
                _NONE64 if means is None else means.numpy(),
                *(_NONE if x is None else x.numpy() for x in (slots.first, slots.second, slots.sums)),
            ),
        )

    def weight_gradient(self, group: Group, bags: Bags, pooled: Tensor) -> Tensor:
        out = torch.empty(len(bags.ids))
        _, first_element, dims, stored, first_column = _numbers(group)
        _weight_gradient(
            bags.ids.numpy(),
            bags.offsets.numpy(),
            _samples(group, bags),
            group.layout.table_of_feature.numpy(),
            first_element,
            first_column,
            dims,
            stored,
            pooled.numpy(),
            group.weights.numpy(),
            out.numpy(),
        )
        return out


def _samples(group: Group, bags: Bags) -> int:
    return (len(bags.offsets) - 1) // max(1, len(group.layout.first_column))


def _first_features(group: Group) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([shape.features for shape in group.shapes])])


def _numbers(group: Group) -> tuple[np.ndarray, ...]:
    layout = group.layout
    return tuple(
        x.numpy()
        for x in (layout.first_row, layout.first_element, layout.dims, layout.stored, layout.first_column)
    )


def _where(group: Group, touched: Touched) -> tuple[np.ndarray, ...]:
    first_row, first_element, dims, stored, _ = _numbers(group)
    return (
        touched.rows.numpy(),
        first_row,
        first_element,
        dims,
        stored,
        touched.bounds.numpy(),
        touched.packed.numpy(),
    )


def _parts(touched: Touched) -> list[np.ndarray]:
    """The tables by thread."""
    return touched.private[1] if touched.private else _shares(touched.bounds.numpy())


def _shares(begins: np.ndarray) -> list[np.ndarray]:
    """Tables shared out over the threads, the largest first to whoever has least."""
    threads = min(torch.get_num_threads(), len(begins) - 1)
    if threads <= 1:
        return [np.arange(len(begins) - 1)]
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = [0] * threads
    sizes = np.diff(begins)
    for table in np.argsort(-sizes, kind="stable"):
        least = loads.index(min(loads))
        shares[least].append(int(table))
        loads[least] += int(sizes[table])
    return [np.array(share) for share in shares]


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="rows")


def _each(shares: list[np.ndarray], work: Callable[[np.ndarray], None]) -> None:
    if len(shares) == 1:
        work(shares[0])
    else:
        for done in _threads(len(shares)).map(work, shares):
            assert done is None


CPU = Cpu()
