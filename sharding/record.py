"""The sharding plan: where every shard of every table lives, in the user's own names.

It is a frozen record that is saved as JSON, read back and forced, and turned into what TorchRec wants.
Rows and columns are logical half-open ranges; only a table's last columns carry padding, so the stored
width of a shard is its logical width rounded up to a multiple of 4.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
)

from sparta.models.embedding import Table, padded, table_name
from sparta.models.errors import PlanError
from sparta.models.schema import Record
from sparta.sharding.estimate import ShardBytes
from sparta.sharding.tables import collections_of

ShardingName = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]


class ShardPlan(Record):
    """One shard: its rank, its window of the table, its bytes by our estimate."""

    rank: NonNegativeInt
    rows: tuple[NonNegativeInt, NonNegativeInt]
    columns: tuple[NonNegativeInt, PositiveInt]
    bytes: ShardBytes = ShardBytes(0, 0, 0)

    @property
    def stored(self) -> tuple[int, int]:
        """Rows and columns in memory, padding included."""
        return self.rows[1] - self.rows[0], padded(self.columns[1]) - self.columns[0]


class TablePlan(Record):
    """One table and its shards."""

    name: str
    rows: PositiveInt
    dim: PositiveInt
    sharding: ShardingName
    kernel: str = "fused"
    shards: tuple[ShardPlan, ...]


class Plan(Record):
    """Every table's place among the ranks."""

    format: Literal[1] = 1
    ranks: PositiveInt
    local_ranks: PositiveInt
    """Ranks of one node; table_row_wise spreads a table over one node."""
    device: Literal["cpu", "cuda"]
    batch_size: PositiveInt
    """Global batch the buffers were estimated for."""
    received_bytes: NonNegativeInt = 0
    """Per rank: pooled rows and gradients of its own slots."""
    tables: tuple[TablePlan, ...]

    def table(self, name: str) -> TablePlan:
        """The table of that name; KeyError when there is none."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(name)

    def rank_bytes(self, rank: int) -> int:
        """All bytes of a rank by our estimate."""
        shards = [shard for table in self.tables for shard in table.shards if shard.rank == rank]
        return self.received_bytes + sum(shard.bytes.total for shard in shards)

    def counts(self) -> dict[str, int]:
        """Tables by sharding type."""
        return dict(Counter(table.sharding for table in self.tables))

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            PlanError: the place cannot be written.
        """
        try:
            path.write_text(self.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise PlanError(
                f"{path}: cannot be written ({error.strerror}); name a file in a folder that is there"
            ) from error

    def on(self, *, local_ranks: int, device: str) -> "Plan":
        """The same placement on other hardware.

        Raises:
            PlanError: a table is table_row_wise, which is tied to the nodes.
        """
        tied = [table.name for table in self.tables if table.sharding == "table_row_wise"]
        if tied and local_ranks != self.local_ranks:
            raise PlanError(
                f"table {tied[0]} is table_row_wise over nodes of {self.local_ranks} ranks, these have "
                f"{local_ranks}; make a new plan"
            )
        return self.model_copy(update={"local_ranks": local_ranks, "device": device})

    def check(self, tables: Sequence[Table], *, ranks: int, empty_shards: bool = True) -> None:
        """Raise PlanError unless this plan places exactly these tables on that many ranks.

        Args:
            empty_shards: whether a rank may hold no row of a table that is split by rows.
        """
        if self.ranks != ranks:
            raise PlanError(f"the plan is for {self.ranks} ranks, the job has {ranks}; make a new plan")
        if self.ranks % self.local_ranks:
            raise PlanError(f"{self.ranks} ranks are no whole number of nodes of {self.local_ranks}")
        wanted = {table.name: table for table in tables}
        mine_names = [table.name for table in self.tables]
        for name in mine_names:
            if name not in wanted or mine_names.count(name) > 1:
                problem = "twice" if name in wanted else "which the model does not have"
                raise PlanError(f"the plan places table {name!r}, {problem}; make a new plan")
        for name, table in wanted.items():
            if name not in mine_names:
                raise PlanError(f"the plan does not place table {name!r}; make a new plan")
            self._check_table(self.table(name), table, empty_shards)

    def _check_table(self, mine: TablePlan, table: Table, empty_shards: bool) -> None:
        if (mine.rows, mine.dim) != (table.rows, table.dim):
            raise PlanError(
                f"the plan's table {table.name} is {mine.rows} x {mine.dim}, "
                f"the model's is {table.rows} x {table.dim}; make a new plan"
            )
        if not empty_shards and any(start == stop for start, stop in (shard.rows for shard in mine.shards)):
            raise PlanError(
                f"the plan gives a rank no row of table {table.name}, which engine fbgemm cannot hold; "
                "make a new plan or use engine rows"
            )
        found = [(shard.rows, shard.columns) for shard in mine.shards]
        where = [shard.rank for shard in mine.shards]
        if any(rank >= self.ranks for rank in where):
            raise PlanError(f"the plan puts table {table.name} on rank {max(where)} of {self.ranks} (from 0)")
        if mine.sharding == "column_wise":
            widths = [shard.columns for shard in mine.shards]
            joined = [0, *(stop for _, stop in widths)]
            fits = (
                bool(widths)
                and [start for start, _ in widths] == joined[:-1]
                and joined[-1] == table.dim
                and all(stop % 4 == 0 for stop in joined[:-1])
                and len(set(joined)) == len(joined)
                and all(shard.rows == (0, table.rows) for shard in mine.shards)
            )
            rule = f"whole rows, columns from 0 to {table.dim} without gaps, cuts divisible by 4"
        else:
            expected = windows(
                mine.sharding, table, ranks=self.ranks, local_ranks=self.local_ranks, column_width=None
            )
            fits = found == expected and where in self._homes(mine.sharding, where)
            rule = f"{len(expected)} shard(s) {expected} on " + {
                "table_wise": "one rank",
                "row_wise": "ranks 0, 1, ... in order",
                "table_row_wise": "the ranks of one node in order",
                "data_parallel": "ranks 0, 1, ... in order",
            }.get(mine.sharding, "")
        if not fits:
            raise PlanError(
                f"the plan's shards of table {table.name} are not {mine.sharding}; it takes {rule}"
            )

    def _homes(self, sharding: str, where: list[int]) -> list[list[int]]:
        if sharding == "table_wise":
            return [where[:1]]
        if sharding in ("row_wise", "data_parallel"):
            return [list(range(self.ranks))]
        nodes = range(0, self.ranks, self.local_ranks)
        return [list(range(first, first + self.local_ranks)) for first in nodes]

    def torchrec(self, model: nn.Module) -> ShardingPlan:
        """The same plan in TorchRec's terms, for the collections of an unsharded model."""
        modules: dict[str, Any] = {}
        for path, collection in collections_of(model):
            modules[path] = EmbeddingModuleShardingPlan(
                {
                    config.name: self._parameter(self.table(table_name(config.name)))
                    for config in collection.embedding_bag_configs()
                }
            )
        return ShardingPlan(modules)

    def _parameter(self, table: TablePlan) -> ParameterSharding:
        return ParameterSharding(
            sharding_type=table.sharding,
            compute_kernel=table.kernel,
            ranks=[shard.rank for shard in table.shards],
            sharding_spec=None
            if table.sharding == "data_parallel"
            else EnumerableShardingSpec(
                [
                    ShardMetadata(
                        shard_sizes=list(shard.stored),
                        shard_offsets=[shard.rows[0], shard.columns[0]],
                        placement=placement(self.device, shard.rank, self.local_ranks),
                    )
                    for shard in table.shards
                ]
            ),
        )


def rows_run_out(rows: int, parts: int) -> bool:
    """Whether TorchRec's blocks of ceil(rows / parts) leave the last part without a row."""
    return (parts - 1) * -(-rows // parts) >= rows


def windows(
    sharding: str, table: Table, *, ranks: int, local_ranks: int, column_width: int | None
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Row and column ranges of a table's shards, as TorchRec cuts them: blocks of ceil(rows / parts)."""
    if sharding in ("table_wise", "data_parallel"):
        return [((0, table.rows), (0, table.dim))] * (1 if sharding == "table_wise" else ranks)
    if sharding == "column_wise":
        width = column_width or padded(table.dim)
        starts = range(0, padded(table.dim), width)
        return [((0, table.rows), (start, min(start + width, table.dim))) for start in starts]
    parts = ranks if sharding == "row_wise" else local_ranks
    block = -(-table.rows // parts)
    cuts = [min(part * block, table.rows) for part in range(parts + 1)]
    return [((cuts[part], cuts[part + 1]), (0, table.dim)) for part in range(parts)]


def read_plan(path: Path) -> Plan:
    """Read a saved plan; `Plan.check` compares it with a job. Messages leave the path to the caller.

    Raises:
        PlanError: no such file, not JSON, or not a plan.
    """
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise PlanError("no such plan; `sparta plan` writes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"not readable as JSON ({error}); make a new plan") from error
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "plan"
        raise PlanError(f"{place}: {first['msg']}; make a new plan") from error
