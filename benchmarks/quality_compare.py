"""Paired bootstrap over test rows: how sure is a difference of AUC between two optimizers?

A resample draws as many test rows as there are, with replacement, and every model is scored on the same draw;
runs are paired by seed and the differences averaged over the seeds. So the interval tells how much
the difference owes to these test rows; how much it owes to the seeds is told by their spread.
"""

# N = test rows, R = resamples, S = seeds

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_study import Record

Floats = NDArray[np.float64]


class Ranked:
    """One model's scores, sorted once, so that the AUC of any weights of the rows is a pass over them."""

    def __init__(self, scores_N: NDArray[np.float32], labels_N: NDArray[np.bool_]) -> None:
        self._positives = np.flatnonzero(labels_N)
        negatives = np.flatnonzero(~labels_N)
        self._negatives = negatives[np.argsort(scores_N[negatives], kind="stable")]
        # Negatives below each positive, and those together with its ties.
        ordered, sought = scores_N[self._negatives], scores_N[self._positives]
        self._below = np.searchsorted(ordered, sought, side="left")
        self._tied = np.searchsorted(ordered, sought, side="right")

    def auc(self, weights_N: Floats) -> float:
        """Weighted AUC, ties averaged."""
        negative = np.concatenate(([0.0], np.cumsum(weights_N[self._negatives])))
        positive = weights_N[self._positives]
        # A product with `@` would wake BLAS's threads, which costs ten times the sum on a busy machine.
        wins = (positive * (negative[self._below] + negative[self._tied])).sum()
        return float(wins / 2 / (positive.sum() * negative[-1]))


def bootstrap(
    models: Sequence[NDArray[np.float32]], labels_N: NDArray[np.bool_], *, resamples: int, seed: int = 0
) -> Floats:
    """AUC of every model on every resample, (R, models); all models see the same draws."""
    rng = np.random.default_rng(seed)
    ranked = [Ranked(scores_N, labels_N) for scores_N in models]
    rows, aucs = len(labels_N), np.empty((resamples, len(models)))
    for resample in range(resamples):
        weights_N = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(np.float64)
        aucs[resample] = [model.auc(weights_N) for model in ranked]
    return aucs


def compared(
    aucs_RS: Floats, baseline_RS: Floats, scores_S: Sequence[float], base_S: Sequence[float]
) -> Record:
    """The difference of AUC, its 95% interval over test rows, its standard error and its values by seed."""
    differences_R = (aucs_RS - baseline_RS).mean(axis=1)
    by_seed = [ours - theirs for ours, theirs in zip(scores_S, base_S, strict=True)]
    return {
        "difference": statistics.fmean(by_seed),
        "interval": [float(bound) for bound in np.quantile(differences_R, [0.025, 0.975])],
        "standard_error": float(differences_R.std(ddof=1)),
        "by_seed": by_seed,
    }


def spread(values: Sequence[float]) -> Record:
    """Mean and standard deviation over the seeds."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
