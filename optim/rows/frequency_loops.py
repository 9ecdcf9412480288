"""The loops of frequency.py, compiled by numba."""

import numpy as np
from numpy.typing import NDArray

from sparta.optim.rows.loops import Doubles, compiled
from sparta.optim.rows.prefetch import prefetch

Integers = NDArray[np.int64]
_AHEAD = 16


@compiled
def count(
    rows: Integers,
    occurrences: Integers,
    bounds: Integers,
    counts: Integers,
    advances: NDArray[np.bool_],
    missing: Integers,
    largest: Integers,
) -> None:
    for t in range(len(bounds) - 1):
        most = 0
        for u in range(bounds[t], bounds[t + 1]):
            if u + _AHEAD < bounds[t + 1]:
                prefetch(counts, rows[u + _AHEAD])
            row = rows[u]
            if advances[t]:
                counts[row] += occurrences[u]
            if row != missing[t]:
                most = max(most, counts[row])
        largest[t] = most


@compiled
def scale(
    rows: Integers,
    bounds: Integers,
    squares: Doubles,
    counts: Integers,  # (rows,), or empty
    largest: Integers,
    rho: Doubles,
    xi: Doubles,
    norms: Doubles,
    factors: Doubles,
) -> None:
    for t in range(len(bounds) - 1):
        most = max(largest[t], 1)
        for u in range(bounds[t], bounds[t + 1]):
            radius = rho[t]
            if counts.size:
                if u + _AHEAD < bounds[t + 1]:
                    prefetch(counts, rows[u + _AHEAD])
                radius *= max(min(counts[rows[u]] / most, 1.0), xi[t])
            norm = np.sqrt(squares[u]) if norms[t] < 0 else norms[t]
            factors[u] = radius / norm if 0 < norm < np.inf else 0.0
