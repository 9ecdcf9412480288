"""Tables in pieces, and states made of them, without a model."""

from typing import Any

import torch
from torch import Tensor

from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.store import Checkpoints
from sparta.sharding.state import LogicalTable, Window

PAD = 3
"""Columns beside the logical ones, as in a padded shard: windows are views with a stride."""


def pieces(whole: Tensor, kind: str, rank: int, ranks: int) -> LogicalTable:
    """A rank's part of a table: by rows, by columns, or all of it on the last rank."""
    rows, dim = whole.shape
    cuts = (
        [size * rank // ranks for size in (rows, dim)],
        [size * (rank + 1) // ranks for size in (rows, dim)],
    )
    row, column = (slice(*ends) for ends in zip(*cuts, strict=True))
    if kind == "rows":
        column = slice(0, dim)
    elif kind == "columns":
        row = slice(0, rows)
    else:
        row, column = slice(0, rows if rank == ranks - 1 else 0), slice(0, dim)
    part = whole[row, column]
    padded = torch.full((part.shape[0], part.shape[1] + PAD), torch.nan)
    padded[:, : part.shape[1]] = part
    return LogicalTable(rows, dim, [Window(row.start, column.start, padded[:, : part.shape[1]])])


def values(of: LogicalTable) -> list[Tensor]:
    """Copies of the windows."""
    return [window.values.clone() for window in of.windows]


def state(value: float, rank: int = 0, ranks: int = 1, kind: str = "rows", rows: int = 7) -> dict[str, Any]:
    """What a checkpoint holds, small: every number tells the table's place and `value`."""
    return {
        "tables/t": pieces(torch.arange(rows * 4.0).view(rows, 4) + value, kind, rank, ranks),
        "dense/w": torch.full((3,), value),
        "optim/step": torch.tensor(int(value)),
        f"rng/{rank}": {"draws": (value, rank)},
    }


def numbers(of: dict[str, Any]) -> list[Any]:
    """The content of a state, to be compared."""
    return [
        [window.tolist() for window in values(value)]
        if isinstance(value, LogicalTable)
        else value.tolist()
        if isinstance(value, Tensor)
        else value
        for value in of.values()
    ]


def manifest(step: int, *, settled: bool = True, best_step: int | None = None) -> Manifest:
    """Where training stood after a step."""
    return Manifest(step, {"step": step, "settled": settled, "best_step": best_step}, about={"ranks": 1})


def load(checkpoints: Checkpoints, name: str, rank: int = 0, ranks: int = 1, kind: str = "rows") -> list[Any]:
    """What a rank finds in a checkpoint."""
    mine = state(0.0, rank, ranks, kind)
    checkpoints.load(mine, name)
    return numbers(mine)
