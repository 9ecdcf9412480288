"""The state of the rows engine: saved under one plan, loaded under another, nothing shows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparta.models.errors import DataError
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows.state import learning_state, load_learning
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.state import STEP, LogicalTable
from tests.pool import Pool
from tests.sharding.rows.world import SHARDINGS, TableSpec, World, placements, run, sharded
from tests.sharding.whole import whole_state

KINDS = (*SHARDINGS, "mixed")


def helen(base: str = "adam", **own: object) -> TableOptimizer:
    return TableOptimizer("helen", 0.05, base=base, rho=0.05, **own)  # type: ignore[arg-type]


# One to nine rows: on four ranks row-wise shards of one row and of none.
WORLD = World(
    (
        TableSpec("t0", 9, 8, helen()),
        TableSpec("t1", 3, 12, helen("rowwise_adagrad", xi=0.0), 2),
        TableSpec("t2", 1, 1, helen()),
        TableSpec("t3", 5, 10, helen("rowwise_adagrad", frequency="batch")),
        TableSpec("t4", 6, 3, TableOptimizer("adam", 0.05), 2),
        TableSpec("t5", 2, 10, helen()),
    ),
    steps=6,
    dyadic=False,
)


@pytest.mark.parametrize("to", [("row_wise", 4), ("column_wise", 2), ("data_parallel", 2), ("mixed", 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_under_another_plan(
    pool: Pool, tmp_path: Path, kind: str, to: tuple[str, int]
) -> None:
    first, folder = replace(WORLD, steps=3), str(tmp_path / "state")
    pool.run(2, run, first, placements(first, kind, 2), None, folder, local_ranks=2)
    ranks = to[1]
    gone_on = pool.run(
        ranks, run, WORLD, placements(WORLD, to[0], ranks), folder, None, local_ranks=min(2, ranks)
    )[0]
    straight = pool.run(1, run, WORLD, placements(WORLD, "table_wise", 1))[0]
    assert len(gone_on.losses) == 3
    torch.testing.assert_close(gone_on.losses, straight.losses[3:], rtol=1e-5, atol=0)
    for name, table in straight.weights[-1].items():
        torch.testing.assert_close(gone_on.weights[-1][name], table, rtol=0, atol=1e-5)
    assert gone_on.frequent == straight.frequent
    assert gone_on.state.keys() == straight.state.keys()
    for name, state in straight.state.items():
        torch.testing.assert_close(gone_on.state[name], state, rtol=1e-4, atol=1e-6, msg=name)


def test_the_same_plan_goes_on_to_the_bit(pool: Pool, tmp_path: Path) -> None:
    for kind in KINDS:
        first, folder = replace(WORLD, steps=3), str(tmp_path / kind)
        where = placements(WORLD, kind, 2)
        pool.run(2, run, first, where, None, folder, local_ranks=2)
        gone_on = pool.run(2, run, WORLD, where, folder, None, local_ranks=2)[0]
        straight = pool.run(2, run, WORLD, where, local_ranks=2)[0]
        for name, table in straight.weights[-1].items():
            assert torch.equal(gone_on.weights[-1][name], table)


def refusals(rank: int, ranks: int) -> list[str]:
    def made(world: World) -> RowsStep:
        return RowsStep(sharded(world, placements(world, "table_wise", ranks), ranks), None)

    mine = made(WORLD)
    messages = []
    for other in (
        WORLD.learning_by(name="adam"),
        replace(WORLD, tables=(replace(WORLD.tables[0], rows=10), *WORLD.tables[1:])),
    ):
        with pytest.raises(DataError) as raised:
            load_learning(mine.tables, learning_state(made(other).tables))
        messages.append(str(raised.value))
    return messages


def test_the_state_of_another_job_is_refused(pool: Pool) -> None:
    optimizer, shape = pool.run(1, refusals)[0]
    assert optimizer.startswith("optim/t0/count is missing in the saved state")
    assert "optim/t0/exp_avg is (10, 8) in the saved state, (9, 8) in the model" in shape


def half_fitting(rank: int, ranks: int) -> list[Tensor]:
    """The state after it refused one whose last table alone does not fit."""
    last = replace(WORLD.tables[-1], rows=WORLD.tables[-1].rows + 1)
    other = replace(WORLD, tables=(*WORLD.tables[:-1], last))
    step, theirs = (
        RowsStep(sharded(world, placements(world, "table_wise", ranks), ranks), None)
        for world in (WORLD, other)
    )
    given = learning_state(theirs.tables)
    for value in given.values():
        for window in value.windows if isinstance(value, LogicalTable) else ():
            window.values.fill_(7)
    with pytest.raises(DataError, match="optim/t5/"):
        load_learning(step.tables, given)
    return list(whole_state(step).values())


def test_a_state_that_is_refused_leaves_all_as_it_was(pool: Pool) -> None:
    assert not any(value.any() for value in pool.run(1, half_fitting)[0])


def names(rank: int, ranks: int, kind: str) -> list[str]:
    step = RowsStep(sharded(WORLD, placements(WORLD, kind, ranks), ranks), None)
    return list(learning_state(step.tables))


def test_every_rank_names_the_same_state_whatever_it_holds(pool: Pool) -> None:
    expected = [
        "optim/t0/exp_avg",
        "optim/t0/exp_avg_sq",
        "optim/t0/count",
        "optim/t1/sum",
        "optim/t1/count",
        "optim/t2/exp_avg",
        "optim/t2/exp_avg_sq",
        "optim/t2/count",
        "optim/t3/sum",
        "optim/t4/exp_avg",
        "optim/t4/exp_avg_sq",
        "optim/t5/exp_avg",
        "optim/t5/exp_avg_sq",
        "optim/t5/count",
        STEP,
    ]
    for kind in ("table_wise", "row_wise", "mixed"):
        assert pool.run(4, names, kind, local_ranks=2) == [expected] * 4
