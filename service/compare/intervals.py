"""Intervals for what has several sources of chance: of test rows and of seeds. No numpy here: tables are made of them.

The variances of independent parts add up; the degrees of freedom of the sum are Welch's and Satterthwaite's.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, variance

_NORMAL = 1e4
"""Above so many degrees of freedom a t is a normal one to four digits; mpmath's series soon does not converge."""


def joint(difference: float, standard_error: float, by_seed: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of a difference for which other test rows and other seeds count, of two seeds or more."""
    return bounds(
        difference, [(standard_error**2, math.inf), (variance(by_seed) / len(by_seed), len(by_seed) - 1)]
    )


def bounds(mean: float, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The 95% interval of a mean.

    Args:
        parts: the variances that add up to its own, with their degrees of freedom; the sum's are Welch's and
            Satterthwaite's.
    """
    whole = math.fsum(part for part, _ in parts)
    unsure = math.fsum(part**2 / freedom for part, freedom in parts)
    reach = student(0.95, whole**2 / unsure if unsure else math.inf) * math.sqrt(whole)
    return mean - reach, mean + reach


def student(share: float, freedom: float) -> float:
    """The t that Student's distribution is within, above and below 0, with this probability."""
    if freedom > _NORMAL:
        return NormalDist().inv_cdf((1 + share) / 2)
    from mpmath import betainc  # not for those who only read a table

    low, high = 0.0, 1000.0
    while high - low > 1e-6:
        t = (low + high) / 2
        beyond = betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
        low, high = (t, high) if beyond > 1 - share else (low, t)
    return high
