"""How sure a difference is: the weighted AUC, the bootstrap over rows, the t-test over seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.service.auc import auc
from sparta.service.compare.statistics import (
    Ranked,
    bootstrap,
    interval,
    paired,
    spread,
    t_test,
)

few = settings(max_examples=40, deadline=None)


def model(rng: np.random.Generator, rows: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels they have something to do with."""
    labels = rng.random(rows) < 0.4
    labels[:2] = False, True
    return np.round(strength * labels + rng.standard_normal(rows), 1).astype(np.float32), labels


def ones(rows: int) -> np.ndarray:
    return np.ones(rows, np.float32)


@given(st.integers(2, 60), st.integers(0, 10_000))
@few
def test_a_weight_is_a_number_of_copies(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = model(rng, rows, 1.0)
    copies = rng.integers(0, 3, rows)
    copies[:2] = 1
    again = np.repeat(np.arange(rows), copies)
    expected = auc(scores[again], labels[again], ones(len(again)))
    assert Ranked(scores, labels).auc(copies.astype(np.float64)) == pytest.approx(expected, abs=1e-12)


def test_equal_models_differ_by_nothing_on_any_draw() -> None:
    scores, labels = model(np.random.default_rng(1), 200, 1.0)
    aucs = bootstrap([Ranked(scores, labels), Ranked(2 * scores, labels)], ones(200), resamples=50)
    assert interval(aucs[:, :1], aucs[:, 1:]) == {"interval": [0.0, 0.0], "standard_error": 0.0}


def test_a_row_without_weight_is_never_drawn() -> None:
    scores, labels = model(np.random.default_rng(2), 100, 1.0)
    weights = ones(100)
    weights[50:] = 0
    wild = scores.copy()
    wild[50:] = 99.0
    aucs = bootstrap([Ranked(scores, labels), Ranked(wild, labels)], weights, resamples=20)
    np.testing.assert_array_equal(aucs[:, 0], aucs[:, 1])


def test_of_few_positives_one_at_least_is_drawn() -> None:
    scores = np.arange(300, dtype=np.float32)
    labels = scores >= 298
    assert np.isfinite(bootstrap([Ranked(scores, labels)], ones(300), resamples=100)).all()


def test_the_standard_error_is_that_of_fresh_test_rows() -> None:
    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, labels = model(np.random.default_rng(seed), 600, 1.0)
        return scores, scores + np.random.default_rng(-1 - seed & 0xFFFF).standard_normal(600) / 2, labels

    def difference(seed: int) -> float:
        one, other, labels = drawn(seed)
        return Ranked(one, labels).auc(np.ones(600)) - Ranked(other, labels).auc(np.ones(600))

    truth = np.std([difference(seed) for seed in range(300)])
    one, other, labels = drawn(1000)
    aucs = bootstrap([Ranked(one, labels), Ranked(other, labels)], ones(600), resamples=400)
    found = interval(aucs[:, :1], aucs[:, 1:])
    assert 0.75 < found["standard_error"] / truth < 1.33
    assert found["interval"][1] - found["interval"][0] == pytest.approx(
        3.92 * found["standard_error"], rel=0.15
    )


def test_the_other_way_round_is_the_other_sign() -> None:
    rng = np.random.default_rng(3)
    scores, labels = model(rng, 300, 1.0)
    runs = [Ranked(scores + rng.standard_normal(300).astype(np.float32), labels) for _ in range(4)]
    aucs = bootstrap(runs, ones(300), resamples=60)
    there, back = interval(aucs[:, :2], aucs[:, 2:]), interval(aucs[:, 2:], aucs[:, :2])
    assert there["interval"] == pytest.approx([-bound for bound in reversed(back["interval"])])
    one, other = paired([0.7, 0.8], [0.75, 0.6]), paired([0.75, 0.6], [0.7, 0.8])
    assert one["difference"] == -other["difference"] == pytest.approx(0.075)
    assert one["by_seed"] == pytest.approx([-0.05, 0.2])
    assert one["p"] == other["p"]


@pytest.mark.parametrize(
    ("t", "seeds", "p"),
    # Critical values of Student's t in any table: two-sided, seeds - 1 degrees of freedom.
    [
        (12.706, 2, 0.05),
        (4.303, 3, 0.05),
        (2.776, 5, 0.05),
        (4.604, 5, 0.01),
        (2.262, 10, 0.05),
        (1.961, 2001, 0.05),
    ],
)
def test_p_is_that_of_the_tables(t: float, seeds: int, p: float) -> None:
    # Differences around a mean of t standard errors.
    spread_out = np.linspace(-1, 1, seeds)
    error = spread_out.std(ddof=1) / math.sqrt(seeds)
    assert t_test(list(spread_out + t * error)) == pytest.approx(p, rel=2e-3)


def test_student_s_own_example() -> None:
    # Student (1908), the sleep data: the additional hours of ten patients; t = 4.0621, p = .002833.
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert t_test(hours) == pytest.approx(0.002833, abs=1e-6)


@given(st.integers(2, 6), st.integers(0, 999))
@few
def test_p_of_chance_alone_is_a_share_whatever_the_unit(seeds: int, seed: int) -> None:
    differences = np.random.default_rng(seed).standard_normal(seeds)
    p = t_test(list(differences))
    assert p is not None
    assert 0 < p <= 1
    assert t_test(list(1e-3 * differences)) == pytest.approx(p)
    assert t_test(list(-differences)) == pytest.approx(p)


def test_p_is_as_often_small_as_it_says() -> None:
    rng = np.random.default_rng(4)
    found = [t_test(list(rng.standard_normal(3))) or 0 for _ in range(2000)]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_the_ends_of_the_t_test() -> None:
    assert t_test([0.1]) is None
    assert t_test([0.0, 0.0]) == 1.0
    assert t_test([0.5, 0.5]) is None
    assert spread([0.5]) == {"mean": 0.5, "sd": 0.0}
