"""Which sharding types each table may take: the user's constraints, their twins, and our own rules.

- A constraint on a table holds for its `.wide` twin too, unless the twin has one of its own. A twin is too
  narrow for column_wise and then stays table_wise; a table that is constrained to column_wise alone and has
  no 8 stored columns to split is refused.
- Without a constraint, column_wise cuts at TorchRec's 128 columns or more; with one, into as many shards as
  there are ranks if the width allows, at least two, each a multiple of 4 wide.
- A table is a replica on every rank (data_parallel) only where a constraint says so.
- With engine fbgemm, row-wise Adagrad is split by columns only where a constraint says so (see engines.py).
- With engine fbgemm, a table is split by rows only where every rank gets some: its CPU kernels read past their
  memory for a table without rows.
- On CPU a table that is no large share of all stays whole: TorchRec's planner, whose costs are those of
  GPUs, would split the smallest by rows, and every rank would then pool and send every sample of it.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from sparta.models.embedding import WIDE, Table, padded
from sparta.models.errors import ConfigError, PlanError
from sparta.sharding.engines import SHARDING_TYPES, Engine, TableOptimizer
from sparta.sharding.record import rows_run_out


def spelled_out(
    tables: Sequence[Table], constraints: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Constraints spelled out for every table they hold for, twins included."""
    names = [table.name for table in tables]
    for name, types in constraints.items():
        if name not in names and name + WIDE not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names[:20])}"
            raise ConfigError(f"sharding.constraints: no table {name!r}{hint}")
        if not types:
            raise ConfigError(f"sharding.constraints.{name}: is empty; use {', '.join(SHARDING_TYPES)}")
        for kind in types:
            if kind not in SHARDING_TYPES:
                raise ConfigError(
                    f"sharding.constraints.{name}: {kind!r} is not supported; use {', '.join(SHARDING_TYPES)}"
                )
    asked = {}
    for name in names:
        source = name if name in constraints else name.removesuffix(WIDE)
        if source in constraints:
            asked[name] = constraints[source]
    return asked


def allowed_types(
    tables: Sequence[Table],
    constraints: Mapping[str, Sequence[str]],
    optimizers: Mapping[str, TableOptimizer],
    engine: Engine,
    *,
    ranks: int,
    local_ranks: int,
) -> dict[str, list[str]]:
    """Sharding types the planner may choose from, by table, in SHARDING_TYPES' order.

    Raises:
        ConfigError: a constraint on an unknown table or to an unknown sharding type.
        PlanError: a table too narrow for column_wise, or too short for rows on every rank, its only choice.
    """
    parts = {"row_wise": ranks, "table_row_wise": local_ranks}
    asked = spelled_out(tables, constraints)
    allowed = {}
    unasked = [kind for kind in engine.sharding_types if kind != "data_parallel"]
    for table in tables:
        wanted = asked.get(table.name, unasked)
        for kind in wanted:
            if kind not in engine.sharding_types:
                raise ConfigError(
                    f"sharding.constraints.{table.name}: engine {optimizers[table.name].engine} has no {kind}; "
                    f"use {', '.join(engine.sharding_types)}, or optim.tables.engine: rows"
                )
        types = [kind for kind in SHARDING_TYPES if kind in wanted]
        narrow = column_width(table, ranks=1) is None
        split_state = optimizers[table.name].name == "rowwise_adagrad" and not engine.splits_rowwise_state
        if narrow or (split_state and table.name not in asked):
            types = [kind for kind in types if kind != "column_wise"]
        short = [
            kind for kind in types if not engine.empty_shards and rows_run_out(table.rows, parts.get(kind, 1))
        ]
        types = [kind for kind in types if kind not in short]
        if short and not types:
            raise PlanError(
                f"sharding.constraints: table {table.name} has {table.rows} rows, too few for {short[0]} on "
                f"{parts[short[0]]} ranks: one would hold none, which engine fbgemm cannot; allow table_wise"
            )
        if not types:
            if table.name in constraints or not table.name.endswith(WIDE):
                raise PlanError(
                    f"sharding.constraints: table {table.name} has too few columns ({table.dim}) for column_wise, "
                    "which wants two shards of at least 4; use table_wise, row_wise or table_row_wise"
                )
            types = ["table_wise"]
        allowed[table.name] = types
    return allowed


def small_ones_whole(
    tables: Sequence[Table], allowed: Mapping[str, Sequence[str]], asked: Iterable[str], *, ranks: int
) -> dict[str, list[str]]:
    """The same choices, but table_wise alone for unconstrained tables below half a rank's even share."""
    size = {table.name: table.rows * padded(table.dim) for table in tables}
    limit = sum(size.values()) / (2 * ranks)
    free = {name for name in size if name not in set(asked) and (ranks == 1 or size[name] <= limit)}
    return {name: ["table_wise"] if name in free else list(types) for name, types in allowed.items()}


def column_width(table: Table, *, ranks: int) -> int | None:
    """Width of a column shard: a shard for every rank if the width allows, at least two."""
    stored = padded(table.dim)
    widths = [width for width in range(4, stored, 4) if stored % width == 0]
    enough = [width for width in widths if width * ranks >= stored]
    if enough:
        return enough[0]
    return widths[-1] if widths else None
