"""Mean and deviation of a column that comes in pieces, the same to the last bit however it was cut."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Mean and deviation of a column, exact sums, so that no cut of the rows into chunks changes a bit.

    Every float64 is an integer times a power of 2: the integers are summed per exponent. Squares are of
    the distance to the first value, which keeps their rounding harmless for large means.
    """

    def __init__(self) -> None:
        self._origin: float | None = None
        self._rows = 0
        self._sums = np.zeros((2, 2, _EXPONENTS), np.int64)  # (x, x^2) by (high, low) digits by exponent

    def add(self, x: NDArray[np.float64]) -> None:
        if len(x) == 0:
            return
        if self._origin is None:
            self._origin = float(x[0])
        x = x - self._origin
        self._rows += len(x)
        for sums, values in zip(self._sums, (x, x * x), strict=True):
            fraction, exponent = np.frexp(values)
            digits = (fraction * 2.0**53).astype(np.int64)
            for part, weights in zip(sums, (digits >> 26, digits & (2**26 - 1)), strict=True):
                part += np.bincount(exponent + _BIAS, weights, minlength=_EXPONENTS).astype(np.int64)

    def result(self) -> tuple[float, float]:
        """(mean, deviation); deviation 1 for a constant or absent column, which thus becomes 0."""
        if self._origin is None:
            return 0.0, 1.0
        total, squares = (_exact(high, low) for high, low in self._sums)
        mean = total / self._rows
        variance = float(squares / self._rows - mean * mean)
        return float(Fraction(self._origin) + mean), variance**0.5 if variance > 0 else 1.0


_BIAS = 1100
_EXPONENTS = 2200


def _exact(high: NDArray[np.int64], low: NDArray[np.int64]) -> Fraction:
    """What the digits per exponent add up to."""
    total = Fraction()
    for e in np.flatnonzero(high | low):
        total += ((int(high[e]) << 26) + int(low[e])) * Fraction(2) ** (int(e) - _BIAS - 53)
    return total
