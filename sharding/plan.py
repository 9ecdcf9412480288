"""Makes and reads plans. TorchRec's planner places the tables, fed with our byte estimates and our rules.

Needs no GPU and no process group, so 8 GPUs can be planned for on a laptop.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    PlannerError,
    ShardingOption,
    Storage,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ShardingPlan

from sparta.models.embedding import Table, padded, table_name, torchrec_name
from sparta.models.errors import PlanError
from sparta.sharding.constraints import allowed_types, column_width, small_ones_whole, spelled_out
from sparta.sharding.engines import SHARDING_TYPES, Engine, TableOptimizer, engine_for
from sparta.sharding.estimate import received_bytes, shard_bytes
from sparta.sharding.human import human
from sparta.sharding.record import Plan, ShardPlan, TablePlan, read_plan
from sparta.sharding.sharder import Sharder
from sparta.sharding.show import format_plan

__all__ = ["Plan", "format_plan", "load_plan", "make_plan"]

_UNLIMITED = 1 << 60


def make_plan(
    tables: Sequence[Table],
    *,
    ranks: int,
    local_ranks: int,
    device: str,
    batch_size: int,
    constraints: Mapping[str, Sequence[str]],
    optimizers: Mapping[str, TableOptimizer],
    memory_bytes: int | None = None,
) -> Plan:
    """Place every table with TorchRec's planner.

    Args:
        local_ranks: ranks of one node.
        device: "cpu" or "cuda".
        batch_size: global.
        constraints: sharding types allowed, by table name; the rest may take any.
        memory_bytes: of one rank for tables, optimizer state and buffers; None for no limit.

    Raises:
        ConfigError: an unknown table or sharding type, or an optimizer the engine refuses.
        PlanError: a table that cannot be cut as asked, or does not fit.
    """
    if ranks % local_ranks:
        raise PlanError(
            f"{ranks} ranks are no whole number of nodes of {local_ranks}; every node needs as many"
        )
    engine = engine_for(tables, optimizers, device)
    allowed = allowed_types(tables, constraints, optimizers, engine, ranks=ranks, local_ranks=local_ranks)
    asked = spelled_out(tables, constraints)
    received = received_bytes(tables, batch_size=batch_size, ranks=ranks)
    topology = _topology(ranks, local_ranks, device, max(1, (memory_bytes or _UNLIMITED) - received))
    module, sharder = _collection(tables), Sharder(engine)

    def place(types: Mapping[str, Sequence[str]]) -> ShardingPlan:
        limits = {
            torchrec_name(table.name): ParameterConstraints(
                sharding_types=list(types[table.name]),
                min_partition=column_width(table, ranks=ranks) if table.name in asked else None,
            )
            for table in tables
        }
        enumerator = _Enumerator(topology, tables, optimizers, engine, batch_size=batch_size, limits=limits)
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=max(1, batch_size // ranks),
            enumerator=enumerator,
            constraints=limits,
            storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
            stats=[],
            debug=False,
        )
        if memory_bytes is not None:
            _check_single_tables(enumerator.enumerate(module, [sharder]), memory_bytes, received, ranks)
        return planner.plan(module, [sharder])

    try:
        found = place(small_ones_whole(tables, allowed, asked, ranks=ranks) if device == "cpu" else allowed)
    except (PlannerError, PlanError):
        # Memory is short: then small tables may be split too.
        try:
            found = place(allowed)
        except PlannerError:
            if memory_bytes is None:  # nothing can be too large, so this is our mistake
                raise
            raise PlanError(
                _too_large(tables, optimizers, engine, batch_size, ranks, memory_bytes, device)
            ) from None
    placed = found.get_plan_for_module("")
    plan = Plan(
        ranks=ranks,
        local_ranks=local_ranks,
        device=device,  # type: ignore[arg-type]
        batch_size=batch_size,
        tables=tuple(_table_plan(table, placed[torchrec_name(table.name)]) for table in tables),
    )
    return estimated(plan, tables, optimizers, batch_size=batch_size)


def load_plan(
    path: Path,
    tables: Sequence[Table],
    *,
    ranks: int,
    local_ranks: int,
    device: str,
    batch_size: int,
    optimizers: Mapping[str, TableOptimizer],
    memory_bytes: int | None = None,
) -> Plan:
    """Read a saved plan for a job: checked against its tables and ranks, its bytes estimated anew.

    Raises:
        ConfigError: an optimizer the engine refuses.
        PlanError: an unreadable plan, one for another job, or one that does not fit.
    """
    try:
        plan = read_plan(path).on(local_ranks=local_ranks, device=device)
        engine = engine_for(tables, optimizers, device)
        plan.check(tables, ranks=ranks, empty_shards=engine.empty_shards)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    plan = estimated(plan, tables, optimizers, batch_size=batch_size)
    for rank in range(ranks):
        used = plan.rank_bytes(rank)
        if memory_bytes is not None and used > memory_bytes:
            shards = [(s.bytes.total, t.name) for t in plan.tables for s in t.shards if s.rank == rank]
            size, name = max(shards, default=(0, "none"))
            raise PlanError(
                f"{path}: table {name} does not fit: it takes {human(size)} of the {human(used)} on rank {rank}, "
                f"which has {human(memory_bytes)}; move or split it"
            )
    return plan


def estimated(
    plan: Plan, tables: Sequence[Table], optimizers: Mapping[str, TableOptimizer], *, batch_size: int
) -> Plan:
    """The same plan with our byte estimates for these optimizers and this global batch."""
    engine = engine_for(tables, optimizers, plan.device)

    def priced(table: Table, shard: ShardPlan) -> ShardPlan:
        rows, columns = shard.stored
        cost = shard_bytes(
            table,
            optimizers[table.name],
            engine,
            rows=rows,
            columns=columns,
            batch_size=batch_size,
            device=plan.device,
        )
        return shard.model_copy(update={"bytes": cost})

    return plan.model_copy(
        update={
            "batch_size": batch_size,
            "received_bytes": received_bytes(tables, batch_size=batch_size, ranks=plan.ranks),
            "tables": tuple(
                mine.model_copy(update={"shards": tuple(priced(table, shard) for shard in mine.shards)})
                for table in tables
                for mine in (plan.table(table.name),)
            ),
        }
    )


def _topology(ranks: int, local_ranks: int, device: str, memory_bytes: int) -> Topology:
    trainer = TrainerConfig(
        world_size=ranks,
        local_world_size=local_ranks,
        hbm_cap_bytes=memory_bytes if device == "cuda" else 0,
        ddr_cap_bytes=_UNLIMITED if device == "cuda" else memory_bytes,
    )
    return TopologyFactory.create_topology(trainer, kernel_config=KernelConfig(compute_device=device))


def _collection(tables: Sequence[Table]) -> EmbeddingBagCollection:
    """All tables as TorchRec's planner wants to see them."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=torchrec_name(table.name),
                feature_names=[table.feature],
                num_embeddings=table.rows,
                embedding_dim=padded(table.dim),
            )
            for table in tables
        ],
        device=torch.device("meta"),
    )


class _Enumerator(EmbeddingEnumerator):  # type: ignore[misc]
    """TorchRec's choices in a fixed order (its own depends on string hashing), with our storage."""

    def __init__(
        self,
        topology: Topology,
        tables: Sequence[Table],
        optimizers: Mapping[str, TableOptimizer],
        engine: Engine,
        *,
        batch_size: int,
        limits: dict[str, ParameterConstraints],
    ) -> None:
        super().__init__(topology, max(1, batch_size // topology.world_size), constraints=limits)
        self._tables = {table.name: table for table in tables}
        self._optimizers = optimizers
        self._engine = engine
        self._global_batch = batch_size
        self._on_gpu = topology.compute_device == "cuda"

    def enumerate(self, module: Any, sharders: Any) -> list[ShardingOption]:
        order = list(self._tables)
        options = super().enumerate(module, sharders)
        # A table that TorchRec cuts into one column shard is whole; table_wise is among the choices then.
        options = [
            option for option in options if option.sharding_type != "column_wise" or option.num_shards > 1
        ]
        # Of equally fast choices the first wins, so the plainest stands first.
        return sorted(
            options, key=lambda o: (order.index(table_name(o.name)), SHARDING_TYPES.index(o.sharding_type))
        )

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        super().populate_estimates(sharding_options)
        for option in sharding_options:
            name = table_name(option.name)
            for shard in option.shards:
                rows, columns = shard.size
                size = shard_bytes(
                    self._tables[name],
                    self._optimizers[name],
                    self._engine,
                    rows=rows,
                    columns=columns,
                    batch_size=self._global_batch,
                    device="cuda" if self._on_gpu else "cpu",
                ).total
                shard.storage = Storage(hbm=size, ddr=0) if self._on_gpu else Storage(hbm=0, ddr=size)


def _check_single_tables(
    options: Sequence[ShardingOption], memory_bytes: int, received: int, ranks: int
) -> None:
    """Raise PlanError for a table that no placement of its own fits on the ranks."""
    best: dict[str, tuple[int, str]] = {}
    for option in options:
        largest = max(shard.storage.hbm + shard.storage.ddr for shard in option.shards)
        name = table_name(option.name)
        best[name] = min(best.get(name, (largest, option.sharding_type)), (largest, option.sharding_type))
    for name, (size, kind) in best.items():
        if size + received > memory_bytes:
            raise PlanError(
                f"table {name} does not fit: its smallest placement, {kind}, takes {human(size)} on a rank "
                f"and each of the {ranks} ranks has {human(max(0, memory_bytes - received))} for tables; use more "
                "ranks, fewer rows, a smaller dim or a leaner optimizer, or lift its constraint"
            )


def _too_large(
    tables: Sequence[Table],
    optimizers: Mapping[str, TableOptimizer],
    engine: Engine,
    batch_size: int,
    ranks: int,
    memory_bytes: int,
    device: str,
) -> str:
    sizes = {
        table.name: shard_bytes(
            table,
            optimizers[table.name],
            engine,
            rows=table.rows,
            columns=padded(table.dim),
            batch_size=batch_size,
            device=device,
        ).total
        for table in tables
    }
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"table {largest} does not fit beside the others: it takes {human(sizes[largest])} of "
        f"{human(sum(sizes.values()))} and {ranks} ranks of {human(memory_bytes)} cannot hold all; use more ranks, "
        "fewer rows, a smaller dim or a leaner optimizer, or allow row_wise"
    )


def _table_plan(table: Table, placed: Any) -> TablePlan:
    """Our record of one ParameterSharding; columns are cut back to the logical width."""
    if placed.sharding_type == "data_parallel":
        whole = [ShardPlan(rank=rank, rows=(0, table.rows), columns=(0, table.dim)) for rank in placed.ranks]
        return TablePlan(
            name=table.name,
            rows=table.rows,
            dim=table.dim,
            sharding="data_parallel",
            kernel=placed.compute_kernel,
            shards=tuple(whole),
        )
    shards = []
    for shard, rank in zip(placed.sharding_spec.shards, placed.ranks, strict=True):
        (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
        shards.append(
            ShardPlan(rank=rank, rows=(row, row + rows), columns=(column, min(column + columns, table.dim)))
        )
    return TablePlan(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        sharding=placed.sharding_type,
        kernel=placed.compute_kernel,
        shards=tuple(shards),
    )
