"""Tables, batches and plans drawn at random, and what a few steps of the rows engine make of them.

The model is the tables alone; the loss is linear in the pooled rows (with dyadic coefficients every sum of
gradients is exact in float32, whatever the order), or curved, so that the second pass differs from the first.
"""

# G = samples of the global batch, B = of one rank, D = logical columns

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, sharding_plan
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import DataType

from sparta.models.embedding import padded
from sparta.models.hashing import fill_normal, key
from sparta.sharding.collectives import gather
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows.learner import Learning
from sparta.sharding.rows.sharder import RowsSharder
from sparta.sharding.rows.state import learning_state, load_learning
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.state import OPTIM, LogicalTable, Window, local_shards
from tests.sharding.whole import assembled, whole_state

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TableSpec:
    """One logical table and how it learns."""

    name: str
    rows: int
    dim: int
    optimizer: TableOptimizer
    features: int = 1

    @property
    def keys(self) -> list[str]:
        return [f"{self.name}_{number}" for number in range(self.features)]


@dataclass(frozen=True)
class World:
    """Everything but the plan."""

    tables: tuple[TableSpec, ...]
    samples: int = 8
    steps: int = 1
    seed: int = 0
    dyadic: bool = True
    poison: Mapping[int, str] = field(default_factory=dict)
    """Steps, from 1, and what is not finite on the last rank: its "gradient", or its "loss" alone."""
    ascend_every: int = 1
    half: bool = False
    """Weights in float16."""
    factors: Sequence[float] = ()
    """On the learning rates, of each step; 1 if not given."""
    settles: Sequence[int] = ()
    """Steps after which no row owes weight decay; after the last one none does anyway, unless it saves."""
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Occurrences in the training set, of tables with frequency dataset."""

    def learning_by(self, **changes: Any) -> "World":
        """The same world with other optimizer settings for every table."""
        tables = tuple(replace(one, optimizer=replace(one.optimizer, **changes)) for one in self.tables)
        return replace(self, tables=tables)


@dataclass(frozen=True)
class Outcome:
    """What the steps left, whole and unpadded, the same on every rank."""

    losses: list[float]
    weights: list[dict[str, Tensor]]
    """Before the first step, and after each."""
    perturbed: list[dict[str, Tensor]]
    """In the second pass of each step that had one."""
    state: dict[str, Tensor]
    frequent: dict[str, tuple[int, int]]
    refused: int


def ids_of(world: World, step: int) -> dict[str, tuple[Tensor, Tensor]]:
    """(ids, lengths) of the global batch by feature: repeats, empty bags, frequent first rows."""
    rng = np.random.default_rng((world.seed, step))
    found = {}
    for table in world.tables:
        for name in table.keys:
            lengths = rng.integers(0, 4, world.samples)
            ids = np.minimum(rng.zipf(1.4, lengths.sum()) - 1, table.rows - 1)
            found[name] = torch.from_numpy(ids), torch.from_numpy(lengths)
    return found


def coefficients(world: World, step: int) -> dict[str, Tensor]:
    """(G, D) by feature, what the loss multiplies pooled rows by."""
    generator = torch.Generator().manual_seed(1000 * world.seed + step)
    found = {}
    for table in world.tables:
        for name in table.keys:
            drawn = torch.randint(-8, 9, (world.samples, table.dim), generator=generator) / 16
            found[name] = drawn if world.dyadic else drawn + torch.randn(drawn.shape, generator=generator)
    return found


def initial(world: World) -> dict[str, Tensor]:
    """Tables before training: normal, in steps of 1/64 where sums are to be exact."""
    found = {}
    for table in world.tables:
        weights = torch.empty(table.rows, table.dim)
        fill_normal(weights, key(world.seed, table.name), 0, 0, table.dim, 0.5)
        found[table.name] = (weights * 64).round() / 64 if world.dyadic else weights
    return found


class _Model(nn.Module):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=table.name,
                    num_embeddings=table.rows,
                    embedding_dim=padded(table.dim),
                    feature_names=table.keys,
                    data_type=DataType.FP16 if world.half else DataType.FP32,
                    init_fn=nn.init.zeros_,
                )
                for table in world.tables
            ],
            device=torch.device("meta"),
        )

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        return self.bags(sparse).to_dict()  # type: ignore[no-any-return]


def _placed(how: str) -> Any:
    kind, _, where = how.partition(":")
    match kind:
        case "table_wise":
            return sharding_plan.table_wise(rank=int(where))
        case "column_wise":
            return sharding_plan.column_wise(ranks=[int(rank) for rank in where.split(",")])
        case "table_row_wise":
            return sharding_plan.table_row_wise(host_index=int(where))
    return getattr(sharding_plan, kind)()


def sharded(world: World, placement: Mapping[str, str], ranks: int) -> nn.Module:
    """The tables on their ranks, with their initial weights."""
    specs = {table.name: table for table in world.tables}
    occurrences = {name: torch.tensor(counts) for name, counts in world.counts.items()}
    sharder = RowsSharder(
        lambda config: Learning(
            specs[config.name].optimizer, specs[config.name].dim, counts=occurrences.get(config.name)
        )
    )
    model = _Model(world)
    plan = sharding_plan.construct_module_sharding_plan(
        model.bags,
        per_param_sharding={name: _placed(how) for name, how in placement.items()},
        sharder=sharder,
        local_size=min(2, ranks),
        world_size=ranks,
        device_type="cpu",
    )
    dmp: nn.Module = DistributedModelParallel(
        model, device=CPU, plan=ShardingPlan({"bags": plan}), sharders=[sharder]
    )
    start = initial(world)
    with torch.no_grad():
        for name, row, column, weights in local_shards(dmp):
            mine = start[name][row : row + weights.shape[0], column : column + weights.shape[1]]
            weights.zero_()[:, : mine.shape[1]] = mine
    return dmp


Parts = list[tuple[str, Window]]
"""What a rank holds of the tables."""


def parts_of(world: World, module: nn.Module) -> Parts:
    """A copy of this rank's part of every table, unpadded; the padding must be 0."""
    dims = {table.name: table.dim for table in world.tables}
    mine = []
    for name, row, column, weights in local_shards(module):
        real = max(0, dims[name] - column)
        assert not weights[:, real:].any(), "padding is not 0"
        mine.append((name, Window(row, column, weights[:, :real].clone())))
    return mine


def whole_weights(world: World, moments: Sequence[Parts]) -> list[dict[str, Tensor]]:
    """Every table at every moment, on every rank."""
    mine = []
    for held in zip(*moments, strict=True):
        name, first = held[0]
        mine.append(
            (name, Window(first.row, first.column, torch.stack([window.values for _, window in held])))
        )
    everything = [pair for part in gather(mine) for pair in part]
    found = {
        table.name: assembled(
            (table.rows, table.dim), [window for name, window in everything if name == table.name]
        )
        for table in world.tables
    }
    return [{name: of[moment] for name, of in found.items()} for moment in range(len(moments))]


def batch(world: World, number: int, rank: int, ranks: int) -> KeyedJaggedTensor:
    """A rank's share of a global batch."""
    share = world.samples // ranks
    values, lengths = [], []
    for ids, counts in ids_of(world, number).values():
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        values.append(ids[ends[rank * share] : ends[(rank + 1) * share]])
        lengths.append(counts[rank * share : (rank + 1) * share])
    return KeyedJaggedTensor(list(ids_of(world, number)), torch.cat(values), lengths=torch.cat(lengths).int())


def run(
    rank: int,
    ranks: int,
    world: World,
    placement: Mapping[str, str],
    load: str | None = None,
    save: str | None = None,
) -> Outcome:
    """Train on a plan; collective.

    Args:
        load: folder of a checkpoint to go on from; its step counts as done.
        save: folder to write one to at the end.
    """
    module = sharded(world, placement, ranks)
    step = RowsStep(module, None, ascend_every=world.ascend_every)
    if load:
        state = everything(world, module, step)
        dcp.load(state, checkpoint_id=load)
        load_learning(step.tables, {name: x for name, x in state.items() if name.startswith(OPTIM)})
    share = slice(rank * world.samples // ranks, (rank + 1) * world.samples // ranks)
    losses: list[float] = []
    weights, perturbed = [parts_of(world, module)], list[Parts]()
    for number in range(step.tables.steps + 1, world.steps + 1):
        sparse, factors = batch(world, number, rank, ranks), coefficients(world, number)
        seen: list[Parts] = []

        def loss() -> Tensor:
            seen.append(parts_of(world, module))  # noqa: B023
            pooled = module(sparse)  # noqa: B023
            parts = []
            for table in world.tables:
                for name in table.keys:
                    out = pooled[name][:, : table.dim]
                    parts.append((out * factors[name][share]).sum())  # noqa: B023
                    if not world.dyadic:
                        parts.append(0.5 * (out**2).sum())
            value = torch.stack(parts).sum() * ranks / world.samples
            poison = world.poison.get(number) if rank == ranks - 1 else None  # noqa: B023
            return {"gradient": value * torch.inf, "loss": value + torch.inf}.get(poison or "", value)

        if world.factors:
            step.tables.set_lr(world.factors[number - 1])
        value = step(loss)
        dist.all_reduce(value)
        losses.append(float(value) / ranks)
        if number in world.settles or (number == world.steps and not save):
            settle(step)
        weights.append(parts_of(world, module))
        if len(seen) == 2:
            perturbed.append(seen[1])
    if save:
        dcp.save(everything(world, module, step), checkpoint_id=save)
    moments = whole_weights(world, [*weights, *perturbed])
    whole, moved = moments[: len(weights)], moments[len(weights) :]
    return Outcome(losses, whole, moved, whole_state(step), step.tables.most_frequent(), step.refused)


def settle(step: RowsStep) -> None:
    for one in step.tables.collections:
        one.settle()


def everything(world: World, module: nn.Module, step: RowsStep) -> dict[str, Tensor]:
    """Weights and learning state for torch.distributed.checkpoint, in memory shared with the engine."""
    dims = {table.name: (table.rows, table.dim) for table in world.tables}
    windows: dict[str, list[Window]] = {name: [] for name in dims}
    for name, row, column, weights in local_shards(module):
        windows[name].append(Window(row, column, weights[:, : max(0, dims[name][1] - column)]))
    tables: dict[str, Tensor] = {name: LogicalTable(*dims[name], windows[name]) for name in dims}
    return tables | learning_state(step.tables)


SHARDINGS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel")


def placements(world: World, kind: str, ranks: int) -> dict[str, str]:
    """Every table by one kind of sharding, or "mixed": each by another. Narrow tables are not split by columns."""
    nodes = max(1, ranks // 2)
    found = {}
    for number, table in enumerate(world.tables):
        how = SHARDINGS[number % len(SHARDINGS)] if kind == "mixed" else kind
        shards = padded(table.dim) // 4
        if how == "column_wise" and shards < 2:
            how = "table_wise"
        where = {
            "table_wise": str(number % ranks),
            # More shards than ranks where the width allows: some rank then holds two.
            "column_wise": ",".join(str((number + shard) % ranks) for shard in range(shards)),
            "table_row_wise": str(number % nodes),
        }
        found[table.name] = f"{how}:{where[how]}" if how in where else how
    return found


def table_specs(optimizers: st.SearchStrategy[TableOptimizer]) -> st.SearchStrategy[tuple[TableSpec, ...]]:
    """One to five tables, of one row to thirty, narrow and wide, with one or two features."""
    drawn = st.tuples(st.integers(1, 30), st.sampled_from([1, 3, 8, 10, 12]), st.integers(1, 2), optimizers)
    return st.lists(drawn, min_size=1, max_size=5).map(
        lambda found: tuple(
            TableSpec(f"t{number}", rows, dim, optimizer, features)
            for number, (rows, dim, features, optimizer) in enumerate(found)
        )
    )
