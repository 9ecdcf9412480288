"""AUC against counting every pair, torchmetrics, and its own stated error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from sparta.service.auc import GroupSum, auc, binned_auc, grouped_auc, histogram

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Few distinct scores (ties), small weights with zeros, a handful of groups."""
    size = draw(st.integers(0, 40))

    def column(values: st.SearchStrategy, dtype: type) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype)

    score = st.one_of(st.integers(-3, 3).map(float), st.floats(-20, 20, width=32))
    return (
        column(score, np.float32),
        column(st.booleans(), np.bool_),
        column(st.sampled_from([0.0, 0.25, 1.0, 1.0, 3.0]), np.float32),
        column(st.integers(-1, 4), np.int64),
    )


def pairs_oracle(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float | None:
    """Count every pair."""
    wins = total = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            pair = float(weights[i]) * float(weights[j])
            total += pair
            wins += pair * (float(scores[i] > scores[j]) + float(scores[i] == scores[j]) / 2)
    return wins / total if total > 0 else None


def groups_oracle(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray
) -> GroupSum:
    """Loop over the groups."""
    total = GroupSum()
    for group in np.unique(groups):
        mine = groups == group
        value = pairs_oracle(scores[mine], labels[mine], weights[mine])
        if value is not None:
            weight = float(weights[mine].sum())
            total += GroupSum(value * weight, weight)
    return total


@settings(max_examples=200, deadline=None)
@given(rows())
def test_auc_is_the_share_of_pairs_won(case: Rows) -> None:
    scores, labels, weights, _ = case
    assert auc(scores, labels, weights) == pytest.approx(pairs_oracle(scores, labels, weights), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(rows())
def test_grouped_auc_is_the_loop_over_groups(case: Rows) -> None:
    got, expected = grouped_auc(*case), groups_oracle(*case)
    assert (got.auc, got.weight) == pytest.approx((expected.auc, expected.weight), abs=1e-10)
    assert (got.mean is None) == (expected.mean is None)


@settings(max_examples=200, deadline=None)
@given(rows(), st.sampled_from([1, 2, 7, 64]))
def test_binned_auc_is_within_its_stated_error(case: Rows, bins: int) -> None:
    scores, labels, weights, _ = case
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 0.0)
    value, error = binned_auc(histogram(scores, labels, weights, low, high, bins))
    exact = auc(scores, labels, weights)
    if exact is None:
        assert value is None
        assert error is None
    else:
        assert value is not None
        assert error is not None
        assert abs(value - exact) <= error + 1e-12


def test_binned_error_is_tiny_at_the_default_bins() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.25
    for spread in (1e-4, 1.0, 30.0):  # an untrained model's logits, a trained one's, an overconfident one's
        scores = (spread * (rng.normal(size=labels.size) + labels)).astype(np.float32)
        ones = np.ones(labels.size, np.float32)
        value, error = binned_auc(histogram(scores, labels, ones, float(scores.min()), float(scores.max())))
        exact = auc(scores, labels, ones)
        assert value is not None
        assert error is not None
        assert exact is not None
        assert abs(value - exact) <= error < 1e-5


def test_one_group_is_plain_auc_and_disjoint_groups_add_up() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 50, 3000).astype(np.float32)
    labels, weights = rng.random(3000) < 0.3, rng.random(3000).astype(np.float32)
    groups = rng.integers(0, 40, 3000)
    one = grouped_auc(scores, labels, weights, np.zeros(3000, np.int64))
    assert one.mean == pytest.approx(auc(scores, labels, weights), abs=1e-12)
    halves = GroupSum()
    for part in (0, 1):
        mine = groups % 2 == part
        halves += grouped_auc(scores[mine], labels[mine], weights[mine], groups[mine])
    whole = grouped_auc(scores, labels, weights, groups)
    assert (halves.auc, halves.weight) == pytest.approx((whole.auc, whole.weight))


@pytest.mark.parametrize("ties", [7, 1_000_000])
def test_auc_equals_torchmetrics(ties: int) -> None:
    rng = np.random.default_rng(2)
    scores = (rng.integers(0, ties, 5000) / ties).astype(np.float32)
    labels = rng.random(5000) < 0.2 + 0.5 * scores
    theirs = binary_auroc(torch.from_numpy(scores), torch.from_numpy(labels).int())
    assert auc(scores, labels, np.ones(5000, np.float32)) == pytest.approx(theirs.item(), abs=1e-6)


def test_an_order_preserving_map_of_the_scores_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(-9, 9, 999).astype(np.float32), rng.random(999) < 0.5
    weights = rng.random(999).astype(np.float32)
    assert auc(scores, labels, weights) == auc(scores**3, labels, weights)
    reverse = auc(-scores, labels, weights)
    assert reverse is not None
    assert auc(scores, labels, weights) == pytest.approx(1 - reverse)
