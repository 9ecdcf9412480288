"""Shards a model by a plan: tables through TorchRec and the engine, the rest data-parallel.

Initial table weights are a pure function of (seed, table, row, column), so they do not depend on the plan.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.model_parallel import DataParallelWrapper
from torchrec.distributed.types import ShardingEnv

from sparta.models.batch import Batch
from sparta.models.embedding import table_name
from sparta.models.errors import PlanError
from sparta.models.hashing import fill_normal, key
from sparta.sharding.collectives import from_first, ranks
from sparta.sharding.engines import ENGINES, TableOptimizer, engine_for
from sparta.sharding.record import Plan
from sparta.sharding.rows.bags import RowsCollection, row_collections
from sparta.sharding.rows.learner import Learning
from sparta.sharding.rows.sharder import RowsSharder
from sparta.sharding.sharder import Sharder
from sparta.sharding.state import State, dense_tensors, load_into, local_shards, state_of
from sparta.sharding.tables import collections_of, tables_of


class Sharded:
    """A model spread over the ranks; made by `shard`."""

    def __init__(
        self, module: DistributedModelParallel, plan: Plan, optimizers: Mapping[str, TableOptimizer]
    ) -> None:
        self.module = module
        """Call it on a Batch for logits. With engine fbgemm its backward also steps the tables, with engine
        rows a `RowsStep` does."""
        self.plan = plan
        self.optimizers = optimizers
        """How each table learns."""
        self._groups: list[dict[str, Any]] = module.fused_optimizer.param_groups
        self._lrs = [group["lr"] for group in self._groups]

    def __call__(self, batch: Batch) -> Tensor:
        logits: Tensor = self.module(batch)
        return logits

    @property
    def model(self) -> nn.Module:
        """The user's model without wrappers; its tables are sharded."""
        model: nn.Module = self.module.module
        return model

    @property
    def row_collections(self) -> list[RowsCollection]:
        """The collections that engine rows steps; none with engine fbgemm."""
        return list(row_collections(self.model))

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """What a dense optimizer steps, by name in the user's model."""
        return dense_tensors(self.model)[0]

    def set_table_lr(self, scale: float) -> None:
        """Engine fbgemm: let every table learn at `scale` times its own rate from the next backward on."""
        for group, lr in zip(self._groups, self._lrs, strict=True):
            group["lr"] = lr * scale
        # A fused optimizer's step only hands its rate to the kernel; backward does the rest.
        self.module.fused_optimizer.step()

    def state_dict(self) -> State:
        """`tables/<name>` and `dense/<name>`, independent of the plan; shares memory with the model.

        Weights as they are: what rows owe of weight decay is with the state of the step, or call `settle` first.
        """
        return state_of(self.model, self.plan)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy such a state into the model.

        A state read by torch.distributed.checkpoint into `state_dict()` is in the model already. Either leaves what
        rows owe as it is.
        """
        load_into(self.model, self.plan, state)

    def settle(self) -> None:
        """Have all rows pay their weight decay, which rounds; none owes any then, until the next step."""
        for collection in self.row_collections:
            collection.settle()


def shard(
    model: nn.Module,
    plan: Plan,
    *,
    optimizers: Mapping[str, TableOptimizer],
    device: torch.device,
    seed: int,
    init_std: float = 1e-4,
    init_stds: Mapping[str, float] | None = None,
    row_counts: Mapping[str, Tensor] | None = None,
) -> Sharded:
    """Spread `model` over the ranks of the default process group; it must not be used unsharded after.

    Args:
        plan: rank 0's is used on every rank.
        optimizers: one a table.
        init_std: of the initial table weights; `init_stds` has exceptions by table name.
        row_counts: (rows,) int64 occurrences in the training set, of tables with frequency "dataset".

    Raises:
        ConfigError: tables TorchRec cannot hold, or an optimizer the engine refuses.
        PlanError: the plan is for other tables, ranks or another device.
    """
    plan = from_first(plan)
    tables = tables_of(model)
    engine = engine_for(tables, optimizers, device.type)
    plan.check(tables, ranks=ranks(), empty_shards=engine.empty_shards)
    if plan.device != device.type:
        raise PlanError(
            f"the plan is for {plan.device}, this process trains on {device.type}; make a new plan"
        )
    by_node = [table.name for table in plan.tables if table.sharding == "table_row_wise"]
    if by_node and get_local_size() != plan.local_ranks:
        raise PlanError(
            f"table {by_node[0]} is table_row_wise over nodes of {plan.local_ranks} ranks, "
            f"LOCAL_WORLD_SIZE says {get_local_size()}; make a new plan"
        )
    by_name = {table.name: table for table in tables}

    def learning(config: EmbeddingBagConfig) -> Learning:
        table = by_name[table_name(config.name)]
        return Learning(optimizers[table.name], table.dim, seed, (row_counts or {}).get(table.name))

    for _, collection in collections_of(model):
        for config in collection.embedding_bag_configs():
            table = by_name[table_name(config.name)]
            whole = plan.table(table.name).sharding != "column_wise"
            parameter = collection.embedding_bags[config.name].weight
            engine.equip(parameter, table, optimizers[table.name], whole_rows=whole)
            config.init_fn = _leave
    sharder = RowsSharder(learning) if engine is ENGINES["rows"] else Sharder(engine)
    module = DistributedModelParallel(
        model,
        device=device,
        plan=plan.torchrec(model),
        sharders=[sharder],
        # DistributedDataParallel has nothing to sum on one rank, and takes a tenth of a small step for it.
        data_parallel_wrapper=_Alone() if ranks() == 1 else None,
    )
    _fix_buckets(module)
    sharded = Sharded(module, plan, optimizers)
    with torch.no_grad():
        for name, row, column, weights in local_shards(sharded.model):
            std = (init_stds or {}).get(name, init_std)
            fill_normal(weights, key(seed, "table", name), row, column, by_name[name].dim, std)
    return sharded


class _Alone(DataParallelWrapper):  # type: ignore[misc]
    """No DistributedDataParallel around the dense part, for there is nobody to share gradients with."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        dmp._dmp_wrapped_module = dmp._dmp_wrapped_module.to(device)


def _fix_buckets(module: nn.Module) -> None:
    """Keep the places of dense gradients in the buckets that the ranks sum.

    DistributedDataParallel would arrange them anew after the first step of a process, and where more than two
    ranks sum, the order of the terms depends on the place: a run that resumes would round differently.
    """
    for child in module.modules():
        if isinstance(child, DistributedDataParallel):
            child.reducer._push_all_rebuilt_params()
            child.reducer._rebuild_buckets()


def _leave(weights: Tensor) -> Tensor:
    """In place of TorchRec's own initialisation, which depends on the plan."""
    return weights
