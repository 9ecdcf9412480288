"""The law of this package: plan and number of ranks change nothing about training."""

from functools import cache

import pytest
import torch
import torch.distributed as dist

from sparta.sharding.collectives import gather, total
from sparta.sharding.sharder import SHARDING_TYPES
from sparta.sharding.shard import Sharded, shard
from sparta.sharding.state import LogicalTable
from tests.pool import Pool
from tests.sharding import toys

STEPS = 20


def whole_tables(sharded: Sharded) -> dict[str, torch.Tensor]:
    """Every table as one tensor, on every rank."""
    whole = {}
    for name, mine in sharded.state_dict().items():
        if isinstance(mine, LogicalTable):
            out = torch.full(mine.size(), torch.nan)
            for windows in gather(mine.windows):
                for window in windows:
                    rows, columns = window.values.shape
                    out[window.row : window.row + rows, window.column : window.column + columns] = (
                        window.values
                    )
            whole[name.removeprefix("tables/")] = out
    return whole


def sharded_toy(sharding: str | None, optimizer: str, ranks: int, lr: float = 0.05) -> Sharded:
    local_ranks = min(ranks, 2)
    model = toys.model()
    plan = toys.planned(sharding, optimizer, ranks=ranks, local_ranks=local_ranks)
    return shard(
        model,
        plan,
        optimizers=toys.optimizers(model.embeddings.specs, optimizer, lr),
        device=torch.device("cpu"),
        seed=toys.SEED,
        init_std=toys.STD,
    )


def train(sharded: Sharded, rank: int, ranks: int, steps: int) -> list[float]:
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=toys.DENSE_LR)
    losses = []
    for step in range(steps):
        of = toys.batch(step, rank, ranks)
        value = toys.global_loss(sharded(of), of, step, ranks)
        dense.zero_grad()
        value.backward()
        dense.step()
        losses.append(float(total(value.detach())) / ranks)
    return losses


def trajectories(rank: int, ranks: int, optimizer: str) -> dict[str, toys.Trajectory]:
    """One trajectory per sharding type, and under "plain" the unsharded twin's (from a single rank)."""
    found = {}
    for sharding in SHARDING_TYPES:
        if (sharding, optimizer) != ("column_wise", "rowwise_adagrad"):
            sharded = sharded_toy(sharding, optimizer, ranks)
            found[sharding] = toys.Trajectory(train(sharded, rank, ranks, STEPS), whole_tables(sharded))
    if dist.get_world_size() == 1:
        found["plain"] = toys.plain_trajectory(optimizer, STEPS)
    return found


@pytest.fixture(scope="module")
def run(pool: Pool):
    @cache
    def cached(ranks: int, optimizer: str) -> dict[str, toys.Trajectory]:
        return pool.run(ranks, trajectories, optimizer, local_ranks=min(ranks, 2))[0]

    return cached


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("sharding", SHARDING_TYPES)
def test_every_plan_trains_like_plain_embedding_bags(run, sharding: str, optimizer: str, ranks: int) -> None:
    if (sharding, optimizer) == ("column_wise", "rowwise_adagrad"):
        pytest.skip("FBGEMM keeps an accumulator per column shard; a stated limit")
    expected, found = run(1, optimizer)["plain"], run(ranks, optimizer)[sharding]
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=0)
    for name, table in expected.tables.items():
        torch.testing.assert_close(
            found.tables[name], table, rtol=0, atol=1e-4 * float(table.abs().max()), msg=f"table {name}"
        )
