"""Area under the ROC curve of plain arrays: exact, per group, and from histograms with a proven error.

AUC is the chance that a positive row scores above a negative one, drawn by their weights; a tie
counts half. It is undefined (None) unless both classes have weight. Scores are logits, never
probabilities: a sigmoid in float32 merges all large logits into one tie. torchmetrics' AUROC takes no
weights; torchrec's GAUC neither averages ties nor weights the groups.
"""

# N = rows, K = bins; every label is a bool, every weight is >= 0

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

BINS = 1 << 20


def auc(scores_N: Floats, labels_N: Bools, weights_N: Floats) -> float | None:
    """Exact weighted AUC, ties averaged."""
    positives, pos_weights = _by_score(scores_N[labels_N], weights_N[labels_N])
    negatives, neg_weights = _by_score(scores_N[~labels_N], weights_N[~labels_N])
    below = np.concatenate(
        ([0.0], np.cumsum(neg_weights, dtype=np.float64))
    )  # weight of the first i negatives
    pairs = pos_weights.sum(dtype=np.float64) * below[-1]
    if not pairs > 0:
        return None
    wins = below[np.searchsorted(negatives, positives, side="left")]
    wins += below[np.searchsorted(negatives, positives, side="right")]
    return float(pos_weights.astype(np.float64) @ wins / 2 / pairs)


def _by_score(scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(scores)
    return scores[order], weights[order]


@dataclass(frozen=True)
class GroupSum:
    """AUCs of whole groups, summed by the groups' weights; sums of disjoint sets of groups add up."""

    auc: float = 0.0
    weight: float = 0.0

    def __add__(self, other: "GroupSum") -> "GroupSum":
        return GroupSum(self.auc + other.auc, self.weight + other.weight)

    @property
    def mean(self) -> float | None:
        """GAUC; None when no group holds both classes."""
        return self.auc / self.weight if self.weight > 0 else None


def grouped_auc(
    scores_N: Floats, labels_N: Bools, weights_N: Floats, groups_N: NDArray[np.int64]
) -> GroupSum:
    """Sum of each group's weight times its AUC; groups with one class are left out of both sums."""
    if not len(scores_N):
        return GroupSum()
    order = np.lexsort((scores_N, groups_N))
    scores, groups = scores_N[order], groups_N[order]
    weights = weights_N[order].astype(np.float64)
    positive = np.where(labels_N[order], weights, 0.0)
    negative = weights - positive

    new_group = np.concatenate(([True], groups[1:] != groups[:-1]))
    new_tie = new_group | np.concatenate(([True], scores[1:] != scores[:-1]))
    group_start = np.flatnonzero(new_group)
    tie_start = np.flatnonzero(new_tie)  # a tie = the rows of one group that share a score
    tie_positive = np.add.reduceat(positive, tie_start)
    tie_negative = np.add.reduceat(negative, tie_start)
    first_tie = np.cumsum(new_tie)[group_start] - 1  # of each group
    group_of_tie = np.cumsum(new_group)[tie_start] - 1

    below = np.cumsum(tie_negative) - tie_negative  # over all groups so far: take the group's start off
    below -= below[first_tie][group_of_tie]
    wins = np.add.reduceat(tie_positive * (below + tie_negative / 2), first_tie)
    group_positive = np.add.reduceat(tie_positive, first_tie)
    group_negative = np.add.reduceat(tie_negative, first_tie)
    both = (group_positive > 0) & (group_negative > 0)
    group_positive, group_negative = group_positive[both], group_negative[both]
    share = (group_positive + group_negative) / (group_positive * group_negative)
    return GroupSum(float(wins[both] @ share), float((group_positive + group_negative).sum()))


def histogram(
    scores_N: Floats, labels_N: Bools, weights_N: Floats, low: float, high: float, bins: int = BINS
) -> NDArray[np.float64]:
    """Weight per class and bin, (2, K), of equal bins on [low, high]; row 1 = positives. Histograms add up."""
    scale = bins / (high - low) if high > low else 0.0
    # Rounding cannot reorder scores (subtract, multiply and floor are monotone), so the bound below holds.
    bin_N = np.minimum(((scores_N.astype(np.float64) - low) * scale).astype(np.int64), bins - 1)
    both = np.bincount(bin_N + bins * labels_N, weights=weights_N, minlength=2 * bins)
    return both.reshape(2, bins).astype(np.float64, copy=False)


def binned_auc(histogram_2K: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """AUC from a histogram, and the largest distance it can have from the exact one.

    Only pairs that share a bin are in doubt. They count half, the truth lies between none and all of
    them, so the error is at most half their share of all pairs.
    """
    negative, positive = histogram_2K
    pairs = positive.sum() * negative.sum()
    if not pairs > 0:
        return None, None
    below = np.cumsum(negative) - negative
    doubt = float(positive @ negative / 2 / pairs)
    return float(positive @ below / pairs) + doubt, doubt
