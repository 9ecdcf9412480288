"""The Triton kernels of gpu.py. A program works on a tile of rows, or of ids, by the columns of the widest table.

Indices of rows and places are 64 bits; `at` holds six numbers a table, see `Gpu._at`. All sums run in an order
that depends on the ids alone, so the same input gives the same bits.
"""

# T = tables, F = features, n = ids, u = touched rows, D = columns of the widest table, R = rows of a tile

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from sparta.optim.rows.group import BASES, MOMENTS

_MOMENTS = tl.constexpr(BASES.index(MOMENTS[0]))
_ROWWISE = tl.constexpr(BASES.index("rowwise_adagrad"))
_FIRST_ROW, _FIRST_ELEMENT, _DIM, _STORED, _BOUND, _PACKED = (tl.constexpr(i) for i in range(6))
_AT = tl.constexpr(6)


def compiled(function: Callable[..., Any]) -> Any:
    """A kernel, or a part of one."""
    return triton.jit(function)


@compiled
def row_of(at: tl.tensor, rows: tl.tensor, tables: tl.tensor, u: tl.tensor, known: tl.tensor) -> Any:
    """Of each touched row: its table, the row in it, where it lies in the weights and in packed buffers, its width."""
    table = tl.load(tables + u, mask=known, other=0)
    mine = at + table * _AT
    local = tl.load(rows + u, mask=known, other=0) - tl.load(mine + _FIRST_ROW, mask=known, other=0)
    place = tl.load(mine + _FIRST_ELEMENT, mask=known, other=0) + local * tl.load(
        mine + _STORED, mask=known, other=0
    )
    dim = tl.load(mine + _DIM, mask=known, other=0)
    packed = tl.load(mine + _PACKED, mask=known, other=0)
    packed += (u - tl.load(mine + _BOUND, mask=known, other=0)) * dim
    return table, local, place, packed, dim


@compiled
def _mix64(x: tl.tensor) -> tl.tensor:
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@compiled
def _narrowed(
    x: tl.tensor,
    states: tl.tensor,  # (T,) hashed (key, step, phase) of each table; see rounding.py
    origins: tl.tensor,  # (T, 2)
    table: tl.tensor,
    local: tl.tensor,
    d: tl.tensor,
    DROPPED: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Float32 rounded stochastically; as it is where nothing is DROPPED."""
    found = x
    if DROPPED > 0:
        row = (local + tl.load(origins + 2 * table)).to(tl.uint64, bitcast=True)
        column = tl.load(origins + 2 * table + 1)[:, None] + d[None, :]
        state = tl.load(states + table).to(tl.uint64, bitcast=True)
        bits = _mix64(_mix64(state ^ row)[:, None] ^ column.to(tl.uint64, bitcast=True))
        size = tl.abs(x)
        offset = tl.zeros_like(x)
        if tl.float16 == DTYPE:
            offset = tl.where(size < 2.0**-14, 2.0**-14, offset)
        pattern = (size + offset).to(tl.int32, bitcast=True) + (bits >> (64 - DROPPED)).to(tl.int32)
        kept = ((pattern >> DROPPED) << DROPPED).to(tl.float32, bitcast=True) - offset
        negative = x.to(tl.int32, bitcast=True) < 0
        kept = tl.where(negative, -kept, kept)
        found = tl.where(size < float("inf"), kept, x).to(DTYPE)
    return found


@compiled
def catch_up(
    at: tl.tensor,
    total: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    weights: tl.tensor,
    decayed: tl.tensor,
    decay: tl.tensor,
    R: tl.constexpr,
    D: tl.constexpr,
) -> None:
    u = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    known = u < tl.load(total)
    table, _, place, _, dim = row_of(at, rows, tables, u, known)
    row = tl.load(rows + u, mask=known, other=0)
    now = tl.load(decay + table)
    owed = now - tl.load(decayed + row, mask=known, other=0)
    tl.debug_barrier()  # several threads may hold a row: none may see that it has paid before it did
    tl.store(decayed + row, now, mask=known)
    d = tl.arange(0, D)
    behind = known[:, None] & (d[None, :] < dim[:, None]) & (owed != 0)[:, None]
    w = tl.load(weights + place[:, None] + d[None, :], mask=behind, other=0).to(tl.float64)
    after = (w * tl.exp(-owed)[:, None]).to(tl.float32)
    tl.store(weights + place[:, None] + d[None, :], after, mask=behind)


@compiled
def perturb(
    at: tl.tensor,
    total: tl.tensor,  # (1,) touched rows
    rows: tl.tensor,
    tables: tl.tensor,
    weights: tl.tensor,
    gradient: tl.tensor,
    scale: tl.tensor,
    eta: tl.tensor,
    saved: tl.tensor,
    states: tl.tensor,
    origins: tl.tensor,
    R: tl.constexpr,
    D: tl.constexpr,
    ASAM: tl.constexpr,
    DROPPED: tl.constexpr,
) -> None:
    u = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    known = u < tl.load(total)
    table, local, place, source, dim = row_of(at, rows, tables, u, known)
    d = tl.arange(0, D)
    real = known[:, None] & (d[None, :] < dim[:, None])
    before = tl.load(weights + place[:, None] + d[None, :], mask=real, other=0)
    tl.store(saved + source[:, None] + d[None, :], before, mask=real)
    g = tl.load(gradient + source[:, None] + d[None, :], mask=real, other=0).to(tl.float64)
    factor = tl.load(scale + u, mask=known, other=0)[:, None]
    each = factor + tl.zeros_like(g)
    if ASAM:
        constant = tl.load(eta + table)[:, None]
        size = tl.abs(before.to(tl.float64)) + constant
        each = tl.where(constant >= 0, each * size * size, each)
    moved = before.to(tl.float32) + (each * g).to(tl.float32)
    after = _narrowed(moved, states, origins, table, local, d, DROPPED, weights.dtype.element_ty)
    tl.store(weights + place[:, None] + d[None, :], after, mask=real & (factor != 0))


@compiled
def restore(
    at: tl.tensor,
    total: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    weights: tl.tensor,
    saved: tl.tensor,
    R: tl.constexpr,
    D: tl.constexpr,
) -> None:
    u = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    known = u < tl.load(total)
    _, _, place, source, dim = row_of(at, rows, tables, u, known)
    d = tl.arange(0, D)
    real = known[:, None] & (d[None, :] < dim[:, None])
    before = tl.load(saved + source[:, None] + d[None, :], mask=real, other=0)
    tl.store(weights + place[:, None] + d[None, :], before, mask=real)


@compiled
def step(
    at: tl.tensor,
    total: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    weights: tl.tensor,
    gradient: tl.tensor,
    means: tl.tensor,
    saved: tl.tensor,
    bases: tl.tensor,  # (T,)
    rates: tl.tensor,  # (T, 8) float64, see rates.py
    firsts: tl.tensor,
    seconds: tl.tensor,
    sums: tl.tensor,
    states: tl.tensor,
    origins: tl.tensor,
    R: tl.constexpr,
    D: tl.constexpr,
    RESTORES: tl.constexpr,
    MOMENTS: tl.constexpr,  # whether a table has it; likewise ROWWISE
    ROWWISE: tl.constexpr,
    DROPPED: tl.constexpr,
) -> None:
    u = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    known = u < tl.load(total)
    table, local, place, source, dim = row_of(at, rows, tables, u, known)
    d = tl.arange(0, D)
    real = known[:, None] & (d[None, :] < dim[:, None])
    g = tl.load(gradient + source[:, None] + d[None, :], mask=real, other=0)
    where = place[:, None] + d[None, :]
    if RESTORES:
        before = tl.load(saved + source[:, None] + d[None, :], mask=real, other=0).to(tl.float32)
    else:
        before = tl.load(weights + where, mask=real, other=0).to(tl.float32)
    base = tl.load(bases + table)
    mine = rates + table * 8
    lr, eps = tl.load(mine), tl.load(mine + 1)
    rate = lr
    if ROWWISE:
        rowwise = known & (base == _ROWWISE)
        row = tl.load(rows + u, mask=known, other=0)
        grown = tl.load(sums + row, mask=rowwise, other=0).to(tl.float64)
        grown = (grown + tl.load(means + u, mask=rowwise, other=0)).to(tl.float32)
        tl.debug_barrier()  # as in catch_up
        tl.store(sums + row, grown, mask=rowwise)
        rate = tl.where(rowwise, lr / (tl.sqrt(grown.to(tl.float64)) + eps), rate)
    change = (rate[:, None] * g.to(tl.float64)).to(tl.float32)
    if MOMENTS:
        adam = real & (base >= _MOMENTS)[:, None]
        beta1, beta2 = tl.load(mine + 2), tl.load(mine + 3)
        first = tl.load(firsts + where, mask=adam, other=0) * beta1.to(tl.float32)[:, None]
        first += (1 - beta1).to(tl.float32)[:, None] * g
        second = tl.load(seconds + where, mask=adam, other=0) * beta2.to(tl.float32)[:, None]
        second += (1 - beta2).to(tl.float32)[:, None] * g * g
        tl.store(firsts + where, first, mask=adam)
        tl.store(seconds + where, second, mask=adam)
        ahead = (
            tl.load(mine + 4).to(tl.float32)[:, None] * first + tl.load(mine + 5).to(tl.float32)[:, None] * g
        )
        # Rounded as on a CPU: Triton's own root and quotient of float32 are approximate.
        size = tl.sqrt_rn(second) * tl.load(mine + 6).to(tl.float32)[:, None]
        change = tl.where(adam, tl.div_rn(ahead, size + tl.load(mine + 7).to(tl.float32)[:, None]), change)
    after = _narrowed(before - change, states, origins, table, local, d, DROPPED, weights.dtype.element_ty)
    tl.store(weights + where, after, mask=real)


@compiled
def weight_gradient(
    at: tl.tensor,
    ids: tl.tensor,
    bags: tl.tensor,  # (n,) the bag of each id
    table_of_feature: tl.tensor,
    first_column: tl.tensor,
    weights: tl.tensor,
    pooled: tl.tensor,
    found: tl.tensor,
    count: int,
    samples: int,
    columns: int,
    R: tl.constexpr,
    D: tl.constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    known = i < count
    bag = tl.load(bags + i, mask=known, other=0)
    feature, sample = bag // samples, bag % samples
    mine = at + tl.load(table_of_feature + feature) * _AT
    place = tl.load(mine + _FIRST_ELEMENT) + tl.load(ids + i, mask=known, other=0) * tl.load(mine + _STORED)
    source = sample * columns + tl.load(first_column + feature)
    d = tl.arange(0, D)
    real = known[:, None] & (d[None, :] < tl.load(mine + _DIM)[:, None])
    w = tl.load(weights + place[:, None] + d[None, :], mask=real, other=0).to(tl.float64)
    g = tl.load(pooled + source[:, None] + d[None, :], mask=real, other=0).to(tl.float64)
    tl.store(found + i, tl.sum(w * g, 1).to(tl.float32), mask=known)
