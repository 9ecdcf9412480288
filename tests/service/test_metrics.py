"""Metrics of whole splits: slow formulas, torchrec's NE, many ranks = one rank."""

import json
import math
from itertools import chain
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.metrics.ne import compute_ne, get_ne_states

from sparta.models.errors import ConfigError, DataError
from sparta.service import metrics
from sparta.service.auc import auc
from sparta.service.metrics import Evaluation, Metrics, corrected
from tests.pool import Pool

LABELS = ("click", "buy")


def batch(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(logits, labels, weights, groups, real) with ties, zero weights and padding."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, 2)).round(1) - 1).astype(np.float32)
    labels = (rng.random((rows, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], rows).astype(np.float32)
    real = rng.random(rows) < 0.9
    return logits, labels, weights * real, rng.integers(0, 30, rows), real


def measured(evaluation: Evaluation, batches: list[int], rows: int = 257) -> dict[str, Metrics]:
    for seed in batches:
        logits, labels, weights, groups, real = batch(rows + seed, seed)
        evaluation.update(logits, labels, weights, groups if evaluation.group else None, real_B=real)
    return evaluation.compute()


def flat(result: dict[str, Metrics]) -> dict[str, float | None]:
    return {f"{label} {name}": value for label, task in result.items() for name, value in task.items()}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.01, 30))
def test_sums_equal_the_formulas(seed: int, rows: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, 1)) * spread).astype(np.float32)
    labels = (rng.random((rows, 1)) < 0.4).astype(np.float32)
    weights = rng.choice([0.25, 1.0, 3.0], rows).astype(np.float32)
    evaluation = Evaluation(["y"])
    evaluation.update(logits, labels, weights)
    got = evaluation.compute()["y"]

    y, w, z = labels[:, 0].astype(float), weights.astype(float), logits[:, 0].astype(float)
    p = torch.from_numpy(z).sigmoid().numpy()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(w), reduction="sum"
    ).item()
    assert got["logloss"] == pytest.approx(loss / w.sum(), rel=1e-9)
    rate = (w @ y) / w.sum()
    assert got["auc"] == auc(logits[:, 0], y > 0, weights)
    if rate == 0:
        assert got["calibration"] is None
    else:
        assert got["calibration"] == pytest.approx((w @ p) / (w @ y), rel=1e-9)
    if 0 < rate < 1:
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        assert got["ne"] == pytest.approx(loss / w.sum() / entropy, rel=1e-9)
    else:
        assert got["ne"] is None
        assert got["auc"] is None


def test_normalised_entropy_is_torchrecs() -> None:
    logits, labels, weights, _, _ = batch(4000, 0)
    got = measured(Evaluation(LABELS), [0], rows=4000)
    for task, label in enumerate(LABELS):
        y, w = torch.from_numpy(labels[:, task]).double(), torch.from_numpy(weights).double()
        states = get_ne_states(y, torch.from_numpy(logits[:, task]).double().sigmoid(), w, 1e-12)
        theirs = compute_ne(
            states["cross_entropy_sum"],
            states["weighted_num_samples"],
            states["pos_labels"],
            states["neg_labels"],
            1e-12,
        )
        assert got[label]["ne"] == pytest.approx(theirs.item(), rel=1e-9)


def test_predicting_the_base_rate_is_entropy_one_and_calibrated() -> None:
    labels = (np.arange(1000) % 4 == 0).astype(np.float32)[:, None]
    evaluation = Evaluation(["y"])
    evaluation.update(np.full((1000, 1), -math.log(3), np.float32), labels, np.ones(1000, np.float32))
    got = evaluation.compute()["y"]
    assert got == pytest.approx({"auc": 0.5, "ne": 1, "calibration": 1, "logloss": got["logloss"]}, rel=1e-6)


def test_a_weight_is_a_row_repeated_and_padding_counts_nowhere() -> None:
    logits, labels, _, groups, _ = batch(300, 1)
    weights = np.random.default_rng(1).integers(0, 4, 300)
    padding = np.ones((2, 50, 2), np.float32) * 7
    weighted, repeated = Evaluation(LABELS, group=True), Evaluation(LABELS, group=True)
    weighted.update(logits, labels, weights.astype(np.float32), groups)
    weighted.update(*padding, np.ones(50, np.float32), groups[:50], real_B=np.zeros(50, np.bool_))
    again = np.repeat(np.arange(300), weights)
    repeated.update(logits[again], labels[again], np.ones(again.size, np.float32), groups[again])
    assert flat(weighted.compute()) == pytest.approx(flat(repeated.compute()), rel=1e-12)


def test_batches_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = flat(measured(Evaluation(LABELS, group=True), list(range(6))))
    monkeypatch.setattr(metrics, "CHUNK", 300)
    evaluation = Evaluation(LABELS, group=True)
    assert flat(measured(evaluation, list(range(6)))) == pytest.approx(whole, rel=1e-12)
    assert flat(evaluation.compute()) == pytest.approx(whole, rel=1e-12)  # asking twice changes nothing


def test_beyond_the_exact_limit_auc_states_its_error_and_gauc_stays_exact() -> None:
    exact = measured(Evaluation(LABELS, group=True), [1, 2])
    binned = measured(Evaluation(LABELS, group=True, exact_rows=100), [1, 2])
    for label in LABELS:
        value, error, truth = binned[label]["auc"], binned[label].pop("auc_error"), exact[label]["auc"]
        assert value is not None
        assert error is not None
        assert truth is not None
        assert abs(value - truth) <= error + 1e-12
        assert error < 0.02  # the logits have some 60 distinct values
        assert {**binned[label], "auc": truth} == pytest.approx(exact[label], rel=1e-12)


def test_rows_of_weight_zero_are_covered_where_they_are_told_from_padding() -> None:
    logits, labels, weights, _, real = batch(500, 3)
    told, untold = Evaluation(LABELS), Evaluation(LABELS)
    told.update(logits, labels, weights, real_B=real)
    untold.update(logits, labels, weights)
    assert told.covered == real.sum()
    assert untold.covered == (weights > 0).sum()
    assert told.compute() == untold.compute()


def test_undefined_metrics_are_none_and_json() -> None:
    evaluation = Evaluation(["y"], group=True)
    evaluation.update(np.zeros((4, 1)), np.zeros((4, 1)), np.ones(4), np.zeros(4, np.int64))
    got = evaluation.compute()["y"]
    assert got == {
        "auc": None,
        "gauc": None,
        "ne": None,
        "calibration": None,
        "logloss": pytest.approx(math.log(2)),
    }
    json.dumps(got, allow_nan=False)


def test_rounding_makes_no_second_class() -> None:
    weights = np.random.default_rng(0).random(1000).astype(np.float32)
    evaluation = Evaluation(["y"])
    evaluation.update(np.zeros((1000, 1)), np.ones((1000, 1)), weights)
    got = evaluation.compute()["y"]
    assert got["ne"] is None
    assert got["calibration"] == pytest.approx(0.5)


@pytest.mark.parametrize("rows", [0, 5])
def test_no_weight_at_all_is_refused(rows: int) -> None:
    evaluation = Evaluation(["y"])
    evaluation.update(
        np.zeros((rows, 1)), np.zeros((rows, 1)), np.zeros(rows), real_B=np.ones(rows, np.bool_)
    )
    with pytest.raises(DataError, match=f"none of {rows} rows has a positive sample weight"):
        evaluation.compute()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    evaluation = Evaluation(LABELS)
    logits = np.zeros((9, 2), np.float32)
    logits[3, 1] = bad
    evaluation.update(logits, logits, np.ones(9, np.float32))
    with pytest.raises(DataError, match="1 of 9 logits of 'buy' are not finite"):
        evaluation.compute()


def test_rows_without_a_group_count_in_auc_but_not_in_gauc() -> None:
    logits = np.array([[2.0], [1.0], [1.0], [2.0]], np.float32)
    labels = np.array([[1.0], [0.0], [1.0], [0.0]], np.float32)
    evaluation = Evaluation(["y"], group=True)
    evaluation.update(logits, labels, np.ones(4, np.float32), np.array([7, 7, 0, 0]))
    found = evaluation.compute()["y"]
    assert found["gauc"] == 1.0
    assert found["auc"] == 0.5


def test_group_ids_come_with_group_only() -> None:
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="missing"):
        Evaluation(["y"], group=True).update(one, one, one[0])
    with pytest.raises(ValueError, match="given"):
        Evaluation(["y"]).update(one, one, one[0], np.zeros(1, np.int64))


@given(st.floats(0.01, 0.99), st.floats(0.01, 1))
def test_correction_undoes_the_sampling_of_negatives(p: float, kept: float) -> None:
    sampled = p / (p + (1 - p) * kept)  # the rate a perfect model learns from the sampled rows
    logit = torch.tensor(sampled, dtype=torch.float64).logit()
    assert corrected(logit, kept).sigmoid().item() == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("kept", [0.0, -1.0, 1.5, math.nan])
def test_an_impossible_share_is_refused(kept: float) -> None:
    with pytest.raises(ConfigError, match="share of negatives"):
        corrected(torch.zeros(1), kept)


CASES = {"exact": {}, "binned": {"exact_rows": 400}}
BATCHES = {0: [0, 3, 4, 5], 1: [1, 2], 2: [], 3: [6]}  # uneven, and a rank without a row


def one_rank(rank: int, ranks: int) -> dict[str, Any]:
    """What this rank computes; runs in a worker of the pool, which outlives the test."""
    chunk, metrics.CHUNK = metrics.CHUNK, 300
    try:
        results: dict[str, Any] = {
            name: measured(Evaluation(LABELS, group=True, **case), BATCHES[rank])
            for name, case in CASES.items()
        }
        with pytest.raises(DataError, match="none of 0 rows"):
            Evaluation(LABELS).compute()
        broken = Evaluation(["y"])  # only rank 1 has the bad logit, every rank must leave together
        broken.update(np.full((1, 1), math.nan if rank == 1 else 0.0), np.ones((1, 1)), np.ones(1))
        with pytest.raises(DataError, match=f"1 of {ranks} logits of 'y'"):
            broken.compute()
    finally:
        metrics.CHUNK = chunk
    return results


def test_many_ranks_equal_one_and_each_other(pool: Pool) -> None:
    results = pool.run(len(BATCHES), one_rank)
    assert all(result == results[0] for result in results)
    for name, case in CASES.items():
        alone = measured(Evaluation(LABELS, group=True, **case), sorted(chain(*BATCHES.values())))
        assert flat(results[0][name]) == pytest.approx(flat(alone), rel=1e-12), name


def without_collectives(rank: int, ranks: int) -> dict[str, Any]:
    """Metrics in a process group, where nothing may be sent."""
    with (
        patch.object(dist, "all_reduce", side_effect=AssertionError),
        patch.object(dist, "gather", side_effect=AssertionError),
        patch.object(dist, "broadcast", side_effect=AssertionError),
    ):
        return measured(Evaluation(LABELS, group=True), BATCHES[rank])


def test_one_rank_sends_itself_nothing(pool: Pool) -> None:
    """Gloo's threads would start OpenMP threads of their own, which stay and slow all steps after."""
    assert pool.run(1, without_collectives)[0] == measured(Evaluation(LABELS, group=True), BATCHES[0])
