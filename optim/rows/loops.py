"""The loops of cpu.py, compiled by numba; each runs over some tables of a group, and tables are independent.

Indices are unsigned: numba asks every signed one whether it counts from the end, and those questions kept the
loops over columns from becoming vector instructions (benchmarks/kernels.py has the figures).
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, C = pooled columns

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from sparta.optim.rows.group import BASES, MOMENTS
from sparta.optim.rows.prefetch import prefetch

Index: TypeAlias = NDArray[np.uint64]
Small: TypeAlias = NDArray[np.uint32]
Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

_MOMENTS, _ROWWISE = BASES.index(MOMENTS[0]), BASES.index("rowwise_adagrad")
_ONE = np.uint64(1)  # numba makes a float of an unsigned and a signed integer
_AHEAD = np.uint64(16)  # rows between the one at work and the one asked for; from 8 to 32 all is alike


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
def _place(at: Places, t: np.uint64, u: np.uint64) -> np.uint64:
    """Where a touched row of table t starts in the flat weights."""
    place: np.uint64 = at.first_element[t] + (at.rows[u] - at.first_row[t]) * at.stored[t]
    return place


@compiled
def touch(
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
            if i + _AHEAD < end:
                prefetch(scratch, first_row[t] + bagged.ids[i + _AHEAD])
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
def close_up(
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
def reduce(
    tables: Index,
    bagged: Bagged,
    at: Places,
    slots: Small,
    weights: Floats,
    id_weights: Floats,  # (n,), or empty
    mean: bool,
    pooled: Floats,  # (B * C,)
    eta: Doubles,  # (T,), or empty; l2 likewise
    l2: Doubles,
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
                if sample + _AHEAD < samples:
                    prefetch(pooled, source + _AHEAD * columns)
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
        penalty = l2[t] if l2.size else 0.0
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = begin + (u - at.bounds[t]) * dim
            place = _place(at, t, u)
            if penalty:
                for d in range(dim):
                    gradient[source + d] += np.float32(penalty * np.float64(weights[place + d]))
            square = 0.0
            for d in range(dim):
                g = np.float64(gradient[source + d])
                if adaptive:
                    g = g * (np.abs(np.float64(weights[place + d])) + eta[t])
                square += g * g
            squares[u] = square


@compiled
def catch_up(tables: Index, at: Places, weights: Floats, decayed: Doubles, decay: Doubles) -> None:
    for t in tables:
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            if u + _AHEAD < at.bounds[t + _ONE]:
                prefetch(decayed, at.rows[u + _AHEAD])
                prefetch(weights, _place(at, t, u + _AHEAD))
            owed = decay[t] - decayed[at.rows[u]]
            if owed == 0:
                continue
            decayed[at.rows[u]] = decay[t]
            place, left = _place(at, t, u), np.exp(-owed)
            for d in range(at.dims[t]):
                weights[place + d] = np.float32(np.float64(weights[place + d]) * left)


@compiled
def perturb(
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
            place = _place(at, t, u)
            if u + _AHEAD < at.bounds[t + _ONE]:
                prefetch(weights, _place(at, t, u + _AHEAD))
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
def restore(tables: Index, at: Places, weights: Floats, saved: Floats) -> None:
    for t in tables:
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = at.packed[t] + (u - at.bounds[t]) * at.dims[t]
            place = _place(at, t, u)
            if u + _AHEAD < at.bounds[t + _ONE]:
                prefetch(weights, _place(at, t, u + _AHEAD))
            for d in range(at.dims[t]):
                weights[place + d] = saved[source + d]


@compiled
def step(
    tables: Index,
    at: Places,
    weights: Floats,
    gradient: Floats,
    means: Doubles,
    saved: Floats,
    restores: bool,
    bases: NDArray[np.int64],
    rates: Doubles,  # (T, 8), see rates.py
    firsts: Floats,
    seconds: Floats,
    sums: Floats,
) -> None:
    for t in tables:
        dim, lr, eps = at.dims[t], rates[t, 0], rates[t, 1]
        beta1, rest1 = np.float32(rates[t, 2]), np.float32(1 - rates[t, 2])
        beta2, rest2 = np.float32(rates[t, 3]), np.float32(1 - rates[t, 3])
        of_first, of_g = np.float32(rates[t, 4]), np.float32(rates[t, 5])
        of_root, rest = np.float32(rates[t, 6]), np.float32(rates[t, 7])
        for u in range(at.bounds[t], at.bounds[t + _ONE]):
            source = at.packed[t] + (u - at.bounds[t]) * dim
            place = _place(at, t, u)
            if u + _AHEAD < at.bounds[t + _ONE]:
                far = _place(at, t, u + _AHEAD)
                prefetch(weights, far)
                if bases[t] >= _MOMENTS:
                    prefetch(firsts, far)
                    prefetch(seconds, far)
                elif bases[t] == _ROWWISE:
                    prefetch(sums, at.rows[u + _AHEAD])
            if restores:
                for d in range(dim):
                    weights[place + d] = saved[source + d]
            if bases[t] >= _MOMENTS:
                for d in range(dim):
                    g = gradient[source + d]
                    first = beta1 * firsts[place + d] + rest1 * g
                    second = beta2 * seconds[place + d] + rest2 * g * g
                    firsts[place + d] = first
                    seconds[place + d] = second
                    weights[place + d] -= (of_first * first + of_g * g) / (np.sqrt(second) * of_root + rest)
            else:
                factor = lr
                if bases[t] == _ROWWISE:
                    total = np.float32(np.float64(sums[at.rows[u]]) + means[u])
                    sums[at.rows[u]] = total
                    factor = lr / (np.sqrt(np.float64(total)) + eps)
                for d in range(dim):
                    weights[place + d] -= np.float32(factor * np.float64(gradient[source + d]))


@compiled
def weight_gradient(
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
