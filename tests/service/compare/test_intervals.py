"""Intervals over rows and seeds: Student's table, the limits where one part is sure, and how often they cover."""

import math

import numpy as np
import pytest

from sparta.service.compare.intervals import bounds, joint, student


@pytest.mark.parametrize(
    "freedom, t",
    [(1, 63.657), (2, 9.925), (4, 4.604), (29, 2.756), (9e3, 2.5763), (1e7, 2.5758), (math.inf, 2.5758)],
)
def test_student_s_table(freedom: int, t: float) -> None:
    assert student(0.99, freedom) == pytest.approx(t, abs=5e-4)


def test_a_joint_interval_is_that_of_rows_alone_or_of_seeds_alone_where_the_other_is_sure() -> None:
    by_seed = [0.001, 0.003, 0.002]
    rows = joint(0.002, 1e-3, [0.002] * 3)
    assert rows == pytest.approx((0.002 - 1.96e-3, 0.002 + 1.96e-3), abs=1e-6)
    low, high = joint(0.002, 0.0, by_seed)
    assert (low + high) / 2 == pytest.approx(0.002)
    assert (high - low) / 2 == pytest.approx(student(0.95, 2) * 1e-3 / math.sqrt(3))
    assert joint(0.002, 1e-3, by_seed)[0] < rows[0]


def test_a_joint_interval_covers_what_is_true_19_times_in_20() -> None:
    rng, runs, covered = np.random.default_rng(1), 200, 0
    for _ in range(runs):
        row = rng.normal(0, 1.0)  # the same test rows for every seed
        by_seed = 0.5 + row + rng.normal(0, 1.5, 3)
        low, high = joint(by_seed.mean(), 1.0, list(by_seed))
        covered += low <= 0.5 <= high
    assert covered / runs == pytest.approx(0.95, abs=0.04)


def test_variances_of_parts_add_up() -> None:
    low, high = bounds(1.0, [(0.09, math.inf), (0.16, math.inf)])
    assert (low, high) == pytest.approx((1 - 1.96 * 0.5, 1 + 1.96 * 0.5), abs=1e-4)
