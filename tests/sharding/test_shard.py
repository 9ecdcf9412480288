"""The law of this package: plan and number of ranks change nothing about training."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.errors import PlanError
from sparta.models.schema import Schema
from sparta.sharding.collectives import gather, total
from sparta.sharding.engines import SHARDING_TYPES, Fbgemm
from sparta.sharding.plan import make_plan
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded, shard
from sparta.sharding.state import LogicalTable, local_shards
from sparta.sharding.tables import tables_of
from tests.pool import Pool
from tests.sharding import toys

STEPS = 20
PLANS = (*Fbgemm.sharding_types, "mixed")
KINDS = [("fbgemm", kind) for kind in Fbgemm.sharding_types] + [("rows", kind) for kind in SHARDING_TYPES]


def comparable(sharding: str, optimizer: str) -> bool:
    """FBGEMM keeps an accumulator per column shard, so row-wise Adagrad differs there: a stated limit."""
    return optimizer != "rowwise_adagrad" or sharding not in ("column_wise", "mixed")


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


def sharded_toy(
    sharding: str | None, optimizer: str, ranks: int, lr: float = 0.05, engine: str = "fbgemm"
) -> Sharded:
    local_ranks = min(ranks, 2)
    model = toys.model()
    plan = toys.planned(sharding, optimizer, ranks=ranks, local_ranks=local_ranks, engine=engine)
    return shard(
        model,
        plan,
        optimizers=toys.optimizers(model.embeddings.specs, optimizer, lr, engine),
        device=torch.device("cpu"),
        seed=toys.SEED,
        init_std=toys.STD,
    )


def train(sharded: Sharded, rank: int, ranks: int, steps: int) -> list[float]:
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=toys.DENSE_LR)
    rows = RowsStep(sharded.module, dense) if sharded.row_collections else None
    losses = []
    for step in range(steps):
        of = toys.batch(step, rank, ranks)

        def forward() -> torch.Tensor:
            return toys.global_loss(sharded(of), of, step, ranks)  # noqa: B023

        if rows:
            value = rows(forward)
        else:
            value = forward()
            dense.zero_grad()
            value.backward()
            dense.step()
        losses.append(float(total(value.detach())) / ranks)
    return losses


def trajectories(rank: int, ranks: int, optimizer: str) -> dict[str, toys.Trajectory]:
    """One trajectory per sharding type, and under "plain" the unsharded twin's (from a single rank)."""
    found = {}
    for sharding in PLANS:
        if comparable(sharding, optimizer):
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
@pytest.mark.parametrize(
    ("sharding", "optimizer"),
    [(s, o) for s in PLANS for o in ("sgd", "adagrad", "rowwise_adagrad") if comparable(s, o)],
)
def test_every_plan_trains_like_plain_embedding_bags(run, sharding: str, optimizer: str, ranks: int) -> None:
    expected, found = run(1, optimizer)["plain"], run(ranks, optimizer)[sharding]
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=0)
    for name, table in expected.tables.items():
        torch.testing.assert_close(
            found.tables[name], table, rtol=0, atol=1e-4 * float(table.abs().max()), msg=f"table {name}"
        )


def lookup_error(rank: int, ranks: int, engine: str, sharding: str, bad: int) -> str:
    """The error of this rank's lookup when rank 0's first C1 id is `bad`; empty when it raises none."""
    tables = sharded_toy(sharding, "sgd", ranks, engine=engine).model.embeddings.tables
    sparse = toys.batch(0, rank, ranks).sparse
    values = sparse.values().clone()
    if rank == 0:
        values[0] = bad
    context = tables.create_context()
    sparse = KeyedJaggedTensor(sparse.keys(), values, lengths=sparse.lengths())
    arrived = tables.input_dist(context, sparse).wait().wait()
    try:  # up to here: in the exchange that follows, the other ranks would wait for this one
        tables.compute(context, arrived)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bad", [37, 38, 10**9, -1])
@pytest.mark.parametrize("engine, sharding", KINDS)
def test_an_id_outside_its_table_is_caught(pool: Pool, engine: str, sharding: str, bad: int) -> None:
    errors = pool.run(2, lookup_error, engine, sharding, bad)
    assert any("Expected idx < num_rows" in error or "out of bounds" in error for error in errors), errors


def initial(rank: int, ranks: int) -> dict[str, dict[str, torch.Tensor]]:
    kinds = [*KINDS, ("fbgemm", None), ("rows", None)]
    return {
        f"{engine} {kind}": whole_tables(sharded_toy(kind, "sgd", ranks, engine=engine))
        for engine, kind in kinds
    }


def test_initial_weights_depend_on_neither_plan_nor_ranks(pool: Pool) -> None:
    expected = toys.PlainTables(toys.model().embeddings)
    for ranks in (1, 2, 4):
        for found in pool.run(ranks, initial, local_ranks=min(2, ranks)):
            for tables in found.values():
                for (table, _), bag in zip(expected.outputs, expected.bags, strict=True):
                    torch.testing.assert_close(tables[table.name], bag.weight.detach(), rtol=0, atol=0)


def padding_after_training(rank: int, ranks: int, sharding: str) -> float:
    sharded = sharded_toy(sharding, "adagrad", ranks)
    train(sharded, rank, ranks, 5)
    beyond = [
        weights[:, max(0, sharded.plan.table(name).dim - column) :]
        for name, _, column, weights in local_shards(sharded.model)
    ]
    assert any(columns.numel() for columns in beyond)
    return max(float(columns.abs().max()) for columns in beyond if columns.numel())


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_padding_columns_stay_zero(pool: Pool, sharding: str) -> None:
    assert pool.run(2, padding_after_training, sharding) == [0.0, 0.0]


def refusals(rank: int, ranks: int) -> list[str]:
    model = toys.model()
    messages = []
    for plan in (
        toys.planned("row_wise", "sgd", ranks=2, local_ranks=2),
        toys.planned("row_wise", "sgd", ranks=1, local_ranks=1).model_copy(update={"device": "cuda"}),
        toys.planned("row_wise", "sgd", ranks=1, local_ranks=1, dim=8),
        toys.planned("table_row_wise", "sgd", ranks=1, local_ranks=1).model_copy(update={"local_ranks": 2}),
    ):
        try:
            shard(
                model,
                plan,
                optimizers=toys.optimizers(model.embeddings.specs, "sgd"),
                device=torch.device("cpu"),
                seed=1,
            )
        except PlanError as error:
            messages.append(str(error))
    return messages


def test_a_plan_for_another_job_is_refused(pool: Pool) -> None:
    ranks, device, dim, nodes = pool.run(1, refusals)[0]
    assert "for 2 ranks, the job has 1" in ranks
    assert "for cuda" in device
    assert "37 x 8, the model's is 37 x 10" in dim
    assert "1 ranks are no whole number of nodes of 2" in nodes


def other_nodes(rank: int, ranks: int) -> str:
    with pytest.raises(PlanError) as raised:
        sharded_toy("table_row_wise", "sgd", ranks)
    return str(raised.value)


def test_a_plan_over_other_nodes_is_refused(pool: Pool) -> None:
    # The toy plans nodes of two ranks; here all four share one.
    assert "over nodes of 2 ranks, LOCAL_WORLD_SIZE says 4" in pool.run(4, other_nodes, local_ranks=4)[0]


class Scattered(nn.Module):
    """A user's model: two Embeddings and a plain EmbeddingBagCollection on a real device."""

    def __init__(self) -> None:
        super().__init__()
        first = Schema(sparse=toys.SCHEMA.sparse[:2], labels=("y",), splits={})
        self.left = Embeddings(Inputs(first, 6))
        self.inner = nn.Module()
        self.inner.bags = EmbeddingBagCollection(
            [EmbeddingBagConfig(name="own", embedding_dim=8, num_embeddings=19, feature_names=["tags"])],
            device=torch.device("cpu"),
        )
        self.out = nn.Linear(6 + 6 + 8, 1)

    def forward(self, batch: Batch) -> torch.Tensor:
        pooled = self.left(batch).fields()
        return self.out(torch.cat([*pooled, self.inner.bags(batch.sparse)["tags"]], 1))  # type: ignore[no-any-return]


def scattered(rank: int, ranks: int) -> tuple[list[float], list[str]]:
    torch.manual_seed(1)
    model = Scattered()
    tables = tables_of(model)
    optimizers = toys.optimizers(tables, "adagrad")
    plan = make_plan(
        tables,
        ranks=ranks,
        local_ranks=ranks,
        device="cpu",
        batch_size=toys.GLOBAL,
        constraints={"own": ["row_wise"], "C1": ["column_wise"]},
        optimizers=optimizers,
    )
    sharded = shard(
        model, plan, optimizers=optimizers, device=torch.device("cpu"), seed=1, init_stds={"own": 0.3}
    )
    assert float(whole_tables(sharded)["own"].std()) > 0.2
    assert float(whole_tables(sharded)["C1"].std()) < 1e-3
    return train(sharded, rank, ranks, 5), list(sharded.state_dict())


def test_every_collection_of_a_users_model_is_sharded(pool: Pool) -> None:
    (one, names), (two, _) = pool.run(1, scattered)[0], pool.run(2, scattered)[0]
    torch.testing.assert_close(two, one, rtol=1e-5, atol=0)
    assert names == ["tables/C1", "tables/C2", "tables/own", "dense/out.weight", "dense/out.bias"]
