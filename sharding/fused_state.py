"""What FBGEMM's fused optimizers know beside the weights: one logical tensor per table and kind.

    optim/<table>/exp_avg, exp_avg_sq    (rows, dim) float32    adam's moments
    optim/<table>/sum                    (rows, dim) float32    adagrad's accumulators
    optim/<table>/sum                    (rows, 1) float32      row-wise Adagrad's, of unpadded, whole rows
    optim/<table>/sum@<columns>          (rows, S) float32      row-wise Adagrad's of other tables
    optim/step                           int64 scalar           steps taken

FBGEMM keeps one row-wise accumulator for each of the S shards that a table's columns are split into, and
averages over padding too. Such accumulators mean something only for the columns that they were kept for, so
their name has these (`sum@0:12` a row of 10 columns, `sum@0:4,4:12` a split one), and no other plan or engine
finds them under its own name; `check_names` says why. Tables that no plan splits go from any plan to any other.
"""

from collections.abc import Iterator, Mapping

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn

from sparta.sharding.engines import TableOptimizer
from sparta.sharding.record import Plan, TablePlan
from sparta.sharding.state import (
    BY_COLUMNS,
    OPTIM,
    STEP,
    SUM,
    LogicalTable,
    State,
    Window,
    check_all,
    local_bags,
)

_KINDS = {"sgd": (), "adagrad": (SUM,), "rowwise_adagrad": (SUM,), "adam": ("/exp_avg", "/exp_avg_sq")}
"""In FBGEMM's order."""


class FusedTables:
    """The tables of one model that FBGEMM steps inside backward.

    Args:
        optimizers: by table.
    """

    def __init__(self, module: nn.Module, plan: Plan, optimizers: Mapping[str, TableOptimizer]) -> None:
        self.steps = 0
        """Steps taken; the caller counts."""
        self._module = module
        self._plan = plan
        self._optimizers = {table.name: optimizers[table.name].name for table in plan.tables}
        kernels = [bag.emb_module for _, bag in local_bags(module)]
        self._counting = [kernel for kernel in kernels if kernel.optimizer == EmbOptimType.ADAM]

    def begin(self) -> None:
        """Tell Adam how many steps there were: FBGEMM counts lookups, also those that no backward follows."""
        for kernel in self._counting:
            kernel.iter.fill_(self.steps)
            kernel.iter_cpu.fill_(self.steps)

    def state_dict(self) -> State:
        """The state under its names; table-sized tensors share memory with FBGEMM's."""
        windows: dict[str, list[Window]] = {name: [] for name in self._shapes()}
        for name, window in self._windows():
            windows[name].append(window)
        state: State = {name: LogicalTable(*shape, windows[name]) for name, shape in self._shapes().items()}
        state[STEP] = torch.tensor(self.steps)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take such a state, or one of whole tensors.

        Raises:
            DataError: a key is missing or too many, or a shape differs.
        """
        mine = self.state_dict()
        check_all(mine, state)  # before anything is copied
        for name, target in mine.items():
            if isinstance(target, LogicalTable):
                target.fill_from(state[name])
        self.steps = int(state[STEP])

    def _shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every table-sized tensor, the same on all ranks, also those that hold nothing of it."""
        found = {}
        for table in self._plan.tables:
            optimizer = self._optimizers[table.name]
            columns = len(_stored(table)) if optimizer == "rowwise_adagrad" else table.dim
            for kind in _KINDS[optimizer]:
                found[self._name(table, kind)] = (table.rows, columns)
        return found

    def _name(self, table: TablePlan, kind: str) -> str:
        stored = _stored(table)
        if self._optimizers[table.name] == "rowwise_adagrad" and stored != [(0, table.dim)]:
            kind = BY_COLUMNS + ",".join(f"{first}:{end}" for first, end in stored)
        return OPTIM + table.name + kind

    def _windows(self) -> Iterator[tuple[str, Window]]:
        for shards, bag in local_bags(self._module):
            by_shard = bag.emb_module.split_optimizer_states() or [()] * len(
                shards
            )  # sgd: not one list a shard
            for (name, row, column), states in zip(shards, by_shard, strict=True):
                table, optimizer = self._plan.table(name), self._optimizers[name]
                for kind, values in zip(_KINDS[optimizer], states, strict=True):
                    if optimizer == "rowwise_adagrad":
                        shard = [first for first, _ in _stored(table)].index(column)
                        yield self._name(table, kind), Window(row, shard, values[:, None])
                    else:
                        yield self._name(table, kind), Window(row, column, values[:, : table.dim - column])


def _stored(table: TablePlan) -> list[tuple[int, int]]:
    """Columns of the table's shards as FBGEMM stores them, with padding; half-open."""
    return sorted({(shard.columns[0], shard.columns[0] + shard.stored[1]) for shard in table.shards})
