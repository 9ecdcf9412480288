"""The compiled loops of counting and scaling against the torch operations that say what they compute."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.rows.frequency import count, plain_count, plain_scale, scale
from sparta.optim.rows.group import Shape, Touched
from sparta.optim.rows.plain import PLAIN
from tests.optim.rows.cases import Case, cases, make
from tests.optim.rows.contest import exactly


def flags(tables: int, seed: int) -> Tensor:
    return torch.rand(tables, generator=torch.Generator().manual_seed(seed)) < 0.7


@settings(deadline=None)
@given(cases(), st.integers(0, 2**20))
def test_counts_equal(case: Case, seed: int) -> None:
    group, tables = case.group, len(case.group.shapes)
    touched = PLAIN.touch(group, case.bags, case.scratch)
    rng = torch.Generator().manual_seed(seed)
    mine = torch.randint(0, 9, (group.rows,), generator=rng)
    theirs = mine.clone()
    advances = flags(tables, seed)
    missing = torch.where(flags(tables, seed + 1), group.layout.first_row[:-1], -1)
    for _ in range(2):
        exactly(
            count(touched, mine, advances, missing),
            plain_count(touched, theirs, advances, missing),
        )
        exactly(mine, theirs)


@settings(deadline=None)
@given(cases(), st.integers(0, 2**20), st.booleans())
def test_scales_equal(case: Case, seed: int, counted: bool) -> None:
    group, tables = case.group, len(case.group.shapes)
    touched = PLAIN.touch(group, case.bags, case.scratch)
    rng = torch.Generator().manual_seed(seed)

    def drawn(size: int) -> Tensor:
        return torch.rand(size, generator=rng, dtype=torch.float64)

    squares = drawn(len(touched.rows)) * flags(len(touched.rows), seed)
    counts = torch.randint(1, 2**40, (group.rows,), generator=rng) if counted else None
    largest = torch.randint(0, 2**40, (tables,), generator=rng)  # also less than a row's: id 0 may not set it
    norms = torch.where(flags(tables, seed + 2), -1.0, drawn(tables) * flags(tables, seed + 3))
    operands = touched, squares, counts, largest, drawn(tables), drawn(tables), norms
    # Compilers may divide and multiply in another order: the last bit of a float64.
    torch.testing.assert_close(scale(*operands), plain_scale(*operands), rtol=1e-14, atol=0)


def test_rows_whose_norm_is_not_finite_stay_where_they_are() -> None:
    ones = torch.ones(4, dtype=torch.int64)
    touched = Touched(ones.cumsum(0) - 1, 0 * ones, ones, torch.tensor([0, 4]), torch.tensor([0, 4]), None)
    squares = torch.tensor([torch.nan, torch.inf, 0.0, 4.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for norm, expected in ((-1.0, [0.0, 0.0, 0.0, 0.5]), (torch.nan, [0.0] * 4), (torch.inf, [0.0] * 4)):
        for scaled in (scale, plain_scale):
            found = scaled(touched, squares, None, torch.zeros(1, dtype=torch.int64), one, one, one * norm)
            assert found.tolist() == expected


def test_entries_beyond_the_touched_rows_count_for_nobody() -> None:
    """They stand for row 0, which belongs to the second table where the first has no row here."""
    touched = Touched(
        rows=torch.tensor([1, 0, 0]),
        tables=torch.tensor([1, 0, 0]),
        counts=torch.tensor([2, 0, 0]),
        bounds=torch.tensor([0, 0, 1]),
        packed=torch.tensor([0, 0, 4]),
        private=None,
    )
    counts = torch.tensor([100, 0])
    both = torch.tensor([True, True])
    assert plain_count(touched, counts, both, torch.tensor([-1, -1])).tolist() == [0, 2]
    assert counts.tolist() == [100, 2]


def test_a_batch_without_ids_counts_nothing() -> None:
    for rows in (0, 3):
        case = make([Shape(rows, 4, 4)], [0, 0], samples=2, seed=1)
        touched = PLAIN.touch(case.group, case.bags, case.scratch)
        counts = torch.ones(rows, dtype=torch.int64)
        missing = torch.tensor([-1])
        assert count(touched, counts, torch.tensor([True]), missing).tolist() == [0]
        assert counts.tolist() == [1] * rows
