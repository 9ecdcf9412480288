"""What the rows engine knows beside the weights, whatever the plan: one logical tensor per table and kind.

    optim/<table>/exp_avg, exp_avg_sq    (rows, dim) float32    moments of adam, nadam, radam
    optim/<table>/sum                    (rows, 1) float32      row-wise Adagrad's accumulator
    optim/<table>/count                  (rows, 1) int64        occurrences so far
    optim/<table>/pending                (rows, 1) float64      log of what weight decay is yet to multiply rows by
    optim/step                           int64 scalar           steps taken

What replicas and column shards hold alike is one tensor; torch.distributed.checkpoint stores it once and gives it to
each of them.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sparta.optim.rows.group import MOMENTS
from sparta.sharding.pending import PENDING
from sparta.sharding.rows.learner import Learner
from sparta.sharding.rows.tables import RowTables
from sparta.sharding.state import OPTIM, STEP, LogicalTable, State, Window, check_all


def learning_state(tables: RowTables) -> State:
    """The state under its names; table-sized tensors share memory with the engine."""
    windows: dict[str, list[Window]] = {name: [] for name in _shapes(tables)}
    for name, window in _windows(tables):
        windows[name].append(window)
    state: State = {
        name: LogicalTable(*shape, windows[name], dtype=dtype)
        for name, (shape, dtype) in _shapes(tables).items()
    }
    state[STEP] = torch.tensor(tables.steps)
    return state


@torch.no_grad()
def load_learning(tables: RowTables, state: Mapping[str, Tensor]) -> None:
    """Take such a state, or one of whole tensors; collective.

    A state that torch.distributed.checkpoint has read into `learning_state` is given here too: copies on one
    rank and what is derived from the counts follow.

    Raises:
        DataError: a key is missing or too many, or a shape differs.
    """
    mine = learning_state(tables)
    check_all(mine, state)  # before anything is copied
    for name, target in mine.items():
        if isinstance(target, LogicalTable):
            target.fill_from(state[name])
    tables.steps = int(state[STEP])
    tables.recount()


def _shapes(tables: RowTables) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Shape and type of every table-sized tensor, the same on all ranks, also those that hold nothing of it."""
    found: dict[str, tuple[tuple[int, int], torch.dtype]] = {}
    for name in tables.names:
        optimizer, (rows, dim) = tables.optimizers[name], tables.shapes[name]
        if optimizer.steps_by in MOMENTS:
            found[f"{OPTIM}{name}/exp_avg"] = (rows, dim), torch.float32
            found[f"{OPTIM}{name}/exp_avg_sq"] = (rows, dim), torch.float32
        if optimizer.steps_by == "rowwise_adagrad":
            found[f"{OPTIM}{name}/sum"] = (rows, 1), torch.float32
        if optimizer.rule == "helen" and optimizer.frequency == "cumulative":
            found[f"{OPTIM}{name}/count"] = (rows, 1), torch.int64
        if optimizer.weight_decay:
            found[f"{OPTIM}{name}{PENDING}"] = (rows, 1), torch.float64
    return found


def _windows(tables: RowTables) -> Iterator[tuple[str, Window]]:
    for learner in tables.learners:
        for table, name in enumerate(learner.names):
            for kind, values in _of_table(learner, table):
                row, column = learner.group.origins[table]
                yield f"{OPTIM}{name}/{kind}", Window(row, column if kind.startswith("exp") else 0, values)


def _of_table(learner: Learner, table: int) -> Iterator[tuple[str, Tensor]]:
    """(kind, live values) of one shard."""
    shape, layout, optimizer = (
        learner.group.shapes[table],
        learner.group.layout,
        learner.learning[table].optimizer,
    )
    row, element = int(layout.first_row[table]), int(layout.first_element[table])
    slots = learner.slots
    if optimizer.steps_by in MOMENTS:
        assert slots.first is not None
        assert slots.second is not None
        for kind, flat in (("exp_avg", slots.first), ("exp_avg_sq", slots.second)):
            stored = flat[element : element + shape.rows * shape.stored].view(shape.rows, shape.stored)
            yield kind, stored[:, : shape.dim]
    if optimizer.steps_by == "rowwise_adagrad":
        assert slots.sums is not None
        yield "sum", slots.sums[row : row + shape.rows, None]
    if optimizer.rule == "helen" and optimizer.frequency == "cumulative":
        assert learner.counts is not None
        yield "count", learner.counts[row : row + shape.rows, None]
    if optimizer.weight_decay:
        assert learner.decay is not None
        yield PENDING.removeprefix("/"), learner.decay.pending()[row : row + shape.rows, None]
