"""The Triton kernels of gpu.py that sum the gradients of rows, in pieces first where a row has many ids."""

# T = tables, n = ids, u = touched rows, D = columns of the widest table, R = rows of a tile, P = pieces of a tile

import triton.language as tl

from sparta.optim.rows.gpu_loops import compiled, row_of


@compiled
def _squares(
    g: tl.tensor,
    weights: tl.tensor,
    place: tl.tensor,
    d: tl.tensor,
    real: tl.tensor,
    table: tl.tensor,
    eta: tl.tensor,
    ASAM: tl.constexpr,
) -> tl.tensor:
    """(R,) squared norms of rows, of (|w| + eta) * g where eta is not negative."""
    g = g.to(tl.float64)
    if ASAM:
        size = tl.load(eta + table)[:, None]
        w = tl.load(weights + place[:, None] + d[None, :], mask=real, other=0).to(tl.float64)
        g = tl.where(size >= 0, g * (tl.abs(w) + size), g)
    return tl.sum(tl.where(real, g * g, 0.0), 1)


@compiled
def _penalised(
    g: tl.tensor,
    weights: tl.tensor,
    place: tl.tensor,
    d: tl.tensor,
    real: tl.tensor,
    table: tl.tensor,
    l2: tl.tensor,
    L2: tl.constexpr,
) -> tl.tensor:
    """Gradients of rows with l2 * w."""
    if L2:
        w = tl.load(weights + place[:, None] + d[None, :], mask=real, other=0).to(tl.float64)
        g += (tl.load(l2 + table)[:, None] * w).to(tl.float32)
    return g


@compiled
def reduce_pieces(
    at: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    counts: tl.tensor,
    starts: tl.tensor,  # (u,) where each row's ids begin among the sorted ones
    pieces: tl.tensor,  # (1,)
    begins: tl.tensor,  # (n + 1,) where each piece's ids begin, and the last ends
    slots: tl.tensor,  # (n,) the touched row of each sorted id
    sources: tl.tensor,  # (n,) where the pooled gradient of each sorted id's bag begins
    factors: tl.tensor,  # (n,) what it is multiplied by
    pooled: tl.tensor,
    weights: tl.tensor,
    eta: tl.tensor,
    l2: tl.tensor,
    gradient: tl.tensor,
    squares: tl.tensor,
    partial: tl.tensor,  # (2 * windows, D)
    hot: tl.tensor,  # (windows,) 1 + the touched row that begins there, if it has several pieces
    R: tl.constexpr,
    D: tl.constexpr,
    LONGEST: tl.constexpr,
    FACTORS: tl.constexpr,
    ASAM: tl.constexpr,
    L2: tl.constexpr,
) -> None:
    """Sum pieces of at most LONGEST ids of one row each; rows of one piece are finished."""
    total = tl.load(pieces)
    first = tl.program_id(0).to(tl.int64) * R
    if first < total:
        piece = first + tl.arange(0, R)
        known = piece < total
        begin = tl.load(begins + piece, mask=known, other=0)
        end = tl.load(begins + piece + 1, mask=known, other=0)
        u = tl.load(slots + begin, mask=known, other=0)
        table, _, place, target, dim = row_of(at, rows, tables, u, known)
        d = tl.arange(0, D)
        real = known[:, None] & (d[None, :] < dim[:, None])
        found = tl.zeros((R, D), tl.float32)
        for k in range(tl.max(end - begin)):
            more = known & (begin + k < end)
            source = tl.load(sources + begin + k, mask=more, other=0)
            x = tl.load(pooled + source[:, None] + d[None, :], mask=real & more[:, None], other=0)
            if FACTORS:
                x *= tl.load(factors + begin + k, mask=more, other=0)[:, None]
            found += x
        alone = known & (tl.load(counts + u, mask=known, other=0) <= LONGEST)
        whole = _penalised(found, weights, place, d, real, table, l2, L2)
        tl.store(gradient + target[:, None] + d[None, :], whole, mask=real & alone[:, None])
        own = _squares(whole, weights, place, d, real, table, eta, ASAM)
        tl.store(squares + u, own, mask=alone)
        # No two pieces of rows with several share a window and this flag: such a row has more than a window's ids.
        leads = begin == tl.load(starts + u, mask=known, other=0)
        window = begin // LONGEST
        shared = known & (alone == 0)
        where = (2 * window + leads.to(tl.int64)) * D
        tl.store(partial + where[:, None] + d[None, :], found, mask=real & shared[:, None])
        tl.store(hot + window, u + 1, mask=shared & leads)


@compiled
def reduce_hot(
    at: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    counts: tl.tensor,
    starts: tl.tensor,
    weights: tl.tensor,
    eta: tl.tensor,
    l2: tl.tensor,
    gradient: tl.tensor,
    squares: tl.tensor,
    partial: tl.tensor,
    hot: tl.tensor,
    P: tl.constexpr,
    D: tl.constexpr,
    LONGEST: tl.constexpr,
    ASAM: tl.constexpr,
    L2: tl.constexpr,
) -> None:
    """Sum the pieces of one row that has several, P at a time."""
    mine = tl.load(hot + tl.program_id(0))
    if mine > 0:
        u = (mine - 1).to(tl.int64) + tl.zeros((1,), tl.int64)
        table, _, place, target, dim = row_of(at, rows, tables, u, u >= 0)
        d = tl.arange(0, D)
        real = d[None, :] < dim[:, None]
        start = tl.load(starts + u)
        count = tl.load(counts + mine - 1)
        pieces = (count + LONGEST - 1) // LONGEST
        found = tl.zeros((P, D), tl.float32)
        for k in range(0, pieces, P):
            piece = k + tl.arange(0, P)
            window = (start + piece.to(tl.int64) * LONGEST) // LONGEST
            where = (2 * window + (piece == 0).to(tl.int64)) * D
            mask = (piece < pieces)[:, None] & real
            found += tl.load(partial + where[:, None] + d[None, :], mask=mask, other=0)
        whole = _penalised(tl.sum(found, 0)[None, :], weights, place, d, real, table, l2, L2)
        tl.store(gradient + target[:, None] + d[None, :], whole, mask=real)
        tl.store(squares + u, _squares(whole, weights, place, d, real, table, eta, ASAM))
