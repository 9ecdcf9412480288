"""How sure is a difference between two optimizers? Over the seeds: a paired t-test. Over the test rows: a bootstrap.

Runs are paired by seed. The t-test is two-sided, as in Helen's paper (Zhu et al., WWW 2024): how often would seeds
alone make the mean difference as large. A resample of the bootstrap draws as many test rows as there are, with
replacement, and every run is scored on the same draw; the differences are averaged over the seeds. So its interval
tells how much a difference owes to these test rows. An interval for both is in intervals.py.
"""

# N = test rows, R = resamples, S = seeds

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Ranked:
    """One run's scores, sorted once, so that the AUC of any weights of the rows is a pass over them."""

    def __init__(self, scores_N: NDArray[np.float32], labels_N: NDArray[np.bool_]) -> None:
        self._positives = np.flatnonzero(labels_N)
        negatives = np.flatnonzero(~labels_N)
        self._negatives = negatives[np.argsort(scores_N[negatives], kind="stable")]
        # Negatives below each positive, and those together with its ties.
        ordered, sought = scores_N[self._negatives], scores_N[self._positives]
        self._below = np.searchsorted(ordered, sought, side="left")
        self._tied = np.searchsorted(ordered, sought, side="right")

    def both_classes(self, weights_N: Floats) -> bool:
        """Whether a positive and a negative have weight."""
        return bool(weights_N[self._positives].any() and weights_N[self._negatives].any())

    def auc(self, weights_N: Floats) -> float:
        """Weighted AUC, ties averaged."""
        negative = np.concatenate(([0.0], np.cumsum(weights_N[self._negatives])))
        positive = weights_N[self._positives]
        # A product with `@` would wake BLAS's threads, which costs ten times the sum on a busy machine.
        wins = (positive * (negative[self._below] + negative[self._tied])).sum()
        return float(wins / 2 / (positive.sum() * negative[-1]))


def bootstrap(
    runs: Sequence[Ranked], weights_N: NDArray[np.float32], *, resamples: int, seed: int = 0
) -> Floats:
    """AUC of every run on every resample, (R, runs); all runs see the same draws."""
    rng = np.random.default_rng(seed)
    rows, aucs = len(weights_N), np.empty((resamples, len(runs)))
    for resample in range(resamples):
        while True:
            counts_N = np.bincount(rng.integers(0, rows, rows), minlength=rows)
            drawn_N = counts_N.astype(np.float64) * weights_N
            # Of few positives none may be drawn, and then there is no AUC.
            if all(run.both_classes(drawn_N) for run in runs):
                break
        aucs[resample] = [run.auc(drawn_N) for run in runs]
    return aucs


def interval(ours_RS: Floats, theirs_RS: Floats) -> dict[str, Any]:
    """The 95% interval over test rows of the mean difference, and its standard error."""
    differences_R = (ours_RS - theirs_RS).mean(axis=1)
    return {
        "interval": [float(bound) for bound in np.quantile(differences_R, [0.025, 0.975])],
        "standard_error": float(differences_R.std(ddof=1)),
    }


def paired(ours_S: Sequence[float], theirs_S: Sequence[float]) -> dict[str, Any]:
    """The difference by seed and its mean; `p` of the two-sided paired t-test, None where there is none."""
    by_seed = [ours - theirs for ours, theirs in zip(ours_S, theirs_S, strict=True)]
    return {"difference": fmean(by_seed), "by_seed": by_seed, "p": t_test(by_seed)}


def t_test(differences_S: Sequence[float]) -> float | None:
    """How often a mean as far from 0 would come of chance alone, were the differences normal around 0.

    None for a single seed, and where all differ by the same amount, which tells nothing of how seeds differ.
    """
    seeds = len(differences_S)
    if seeds < 2:
        return None
    mean, error = fmean(differences_S), stdev(differences_S) / math.sqrt(seeds)
    if error == 0:
        return 1.0 if mean == 0 else None
    freedom, t = seeds - 1, mean / error
    # Student's distribution beyond -t and t, by the incomplete beta function.
    tail = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
    return float(tail)


def spread(values_S: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over the seeds, 0 for one."""
    return {"mean": fmean(values_S), "sd": stdev(values_S) if len(values_S) > 1 else 0.0}
