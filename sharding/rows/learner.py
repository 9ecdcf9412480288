"""The learning of one bag's tables: settings, frequencies, the state of the base optimizers, one pass after another.

A learner knows one rank's shards of the tables of a group. What needs other bags or other ranks (the largest
frequency, norms over tables, sums over column shards) it gives to and takes from tables.py as plain vectors.
"""

# T = tables of the group, u = touched rows

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig

from sparta.models.embedding import table_name
from sparta.models.hashing import key
from sparta.optim.rows import kernels_for
from sparta.optim.rows.frequency import count, scale
from sparta.optim.rows.group import BASES, MOMENTS, Group, Kernels, Rates, Shape, Slots, Sum, Touched
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows.decay import Decay


@dataclass(frozen=True)
class Learning:
    """How one table learns, and what of it is padding."""

    optimizer: TableOptimizer
    dim: int
    """Logical columns of the whole table."""
    seed: int = 0
    """Of the stochastic rounding of weights below float32."""
    counts: Tensor | None = None
    """(rows,) int64 occurrences in the training set, for `frequency="dataset"`."""


@dataclass(eq=False)
class Pass:
    """The touched rows of a batch with what a pass found."""

    touched: Touched
    sum: Sum


class Learner:
    """See the module; made by `of`."""

    def __init__(
        self,
        names: list[str],
        learning: list[Learning],
        group: Group,
        kernels: Kernels,
        *,
        replicated: bool,
    ) -> None:
        device = group.weights.device
        self.names = names
        """Of the T tables; a table whose columns are split may stand here several times."""
        self.learning = learning
        self.group = group
        self.kernels = kernels
        self.replicated = replicated
        rows = group.rows
        optimizers = [one.optimizer for one in learning]
        self.stamps = torch.zeros(rows if device.type == "cpu" else 0, dtype=torch.int32, device=device)
        counted = any(optimizer.rule == "helen" for optimizer in optimizers)
        self.counts = torch.zeros(rows, dtype=torch.int64, device=device) if counted else None
        bases = {optimizer.steps_by for optimizer in optimizers}
        moments = not bases.isdisjoint(MOMENTS)
        self.slots = Slots(
            first=torch.zeros(group.elements, device=device) if moments else None,
            second=torch.zeros(group.elements, device=device) if moments else None,
            sums=torch.zeros(rows, device=device) if "rowwise_adagrad" in bases else None,
        )
        self._rowwise = "rowwise_adagrad" in bases

        def vector(values: list[Any], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._lr = torch.tensor([optimizer.lr for optimizer in optimizers], dtype=torch.float64)
        self.rates = Rates(
            base=torch.tensor([BASES.index(optimizer.steps_by) for optimizer in optimizers]),
            lr=self._lr.clone(),
            eps=torch.tensor([optimizer.eps for optimizer in optimizers], dtype=torch.float64),
            betas=torch.tensor([optimizer.betas for optimizer in optimizers], dtype=torch.float64),
        )
        decays = [optimizer.weight_decay for optimizer in optimizers]
        self.decay = Decay(decays, group, kernels) if any(decays) else None
        l2s = [optimizer.l2 for optimizer in optimizers]
        self.l2 = vector(l2s) if any(l2s) else None
        self._dims = vector([one.dim for one in learning])
        # Without a rule the radius is 0, and a row of radius 0 keeps its bits; SAM and ASAM know no frequency.
        self._rho = vector([optimizer.rho if optimizer.rule else 0.0 for optimizer in optimizers])
        self._xi = vector([optimizer.xi if optimizer.rule == "helen" else 1.0 for optimizer in optimizers])
        etas = [optimizer.eta if optimizer.rule == "asam" else -1.0 for optimizer in optimizers]
        self.eta = vector(etas) if max(etas) >= 0 else None
        self.counting = [optimizer.rule == "helen" for optimizer in optimizers]
        frequencies = [optimizer.frequency for optimizer in optimizers]
        self.ascends = any(optimizer.rule for optimizer in optimizers)
        for table, one in enumerate(learning):
            if self.counting[table] and one.optimizer.frequency == "dataset":
                self._take_dataset_counts(table, one)
        self._any_of_batch = any(c and f == "batch" for c, f in zip(self.counting, frequencies, strict=True))
        self._of_batch = vector(
            [c and f == "batch" for c, f in zip(self.counting, frequencies, strict=True)], torch.bool
        )
        self._advances = vector(
            [c and f != "dataset" for c, f in zip(self.counting, frequencies, strict=True)], torch.bool
        )
        first_rows = group.layout.first_row.tolist()
        self._missing = vector(
            [
                -1 if one.optimizer.count_missing or origin[0] else first
                for one, origin, first in zip(learning, group.origins, first_rows, strict=False)
            ],
            torch.int64,
        )

    @classmethod
    def of(
        cls,
        config: GroupedEmbeddingConfig,
        lookup: Any,
        learning: Mapping[str, Learning],
        *,
        replicated: bool,
    ) -> "Learner":
        """The learner of the tables that an FBGEMM lookup module holds."""
        shapes, origins, ways, names = [], [], [], []
        for table in config.embedding_tables:
            way = learning[table.name]
            row, column = table.local_metadata.shard_offsets if table.local_metadata else (0, 0)
            dim = max(0, min(way.dim - column, table.local_cols))
            shapes.append(Shape(table.local_rows, dim, table.local_cols, table.num_features()))
            origins.append((row, column))
            ways.append(way)
            names.append(table_name(table.name))
        weights = flat_weights(lookup)
        group = Group(
            tuple(shapes),
            weights,
            mean=lookup.pooling_mode == PoolingMode.MEAN,
            keys=tuple(key(way.seed, "round", name) for way, name in zip(ways, names, strict=True)),
            origins=tuple(origins),
        )
        return cls(names, ways, group, kernels_for(weights.device), replicated=replicated)

    # --- frequencies -------------------------------------------------------------------------------------

    def count(self, touched: Touched) -> Tensor:
        """Add a batch's occurrences; (T,) the largest frequency among its rows, 0 where nothing is counted."""
        if self.counts is None:
            return torch.zeros_like(self._missing)
        return count(touched, self.counts, self._advances, self._missing)

    def settle(self, touched: Touched, *, kept: bool) -> None:
        """End the step of a batch: take back counts that were only its own, or all of it if it was refused."""
        if self.counts is None or (kept and not self._any_of_batch):
            return
        back = self._of_batch if kept else self._advances
        self.counts.index_add_(0, touched.rows, touched.counts * back[touched.tables], alpha=-1)

    def largest(self) -> Tensor:
        """(T,) the largest frequency of each table's rows here, from all of them."""
        found = torch.zeros(len(self.names), dtype=torch.int64, device=self.group.weights.device)
        for table in range(len(self.names)):
            found[table] = self._best(table)[0]
        return found

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        """The largest frequency of each table's rows here and the first row that has it.

        Left out are tables that count nothing, or only within a batch.
        """
        found: dict[str, tuple[int, int]] = {}
        for table, name in enumerate(self.names):
            if self.counting[table] and self.learning[table].optimizer.frequency != "batch":
                most, row = self._best(table)
                found[name] = most, row + self.group.origins[table][0]
        return found

    def _best(self, table: int) -> tuple[int, int]:
        rows = self.group.shapes[table].rows
        if self.counts is None or not self.counting[table] or not rows:
            return 0, 0
        first = int(self.group.layout.first_row[table])
        counts = self.counts[first : first + rows]
        if int(self._missing[table]) == first:
            counts = counts.clone()
            counts[0] = 0
        most = counts.max()
        return int(most), int((counts == most).nonzero()[0])

    def _take_dataset_counts(self, table: int, one: Learning) -> None:
        assert one.counts is not None  # the sharder has seen to it
        assert self.counts is not None
        first, rows = int(self.group.layout.first_row[table]), self.group.shapes[table].rows
        begin = self.group.origins[table][0]
        self.counts[first : first + rows] = one.counts[begin : begin + rows].to(self.counts.device)

    # --- passes ------------------------------------------------------------------------------------------

    def by_table(self, touched: Touched, values: Tensor) -> Tensor:
        """(T,) sums of (u,) float64 values."""
        # Not index_add_, whose order on a GPU differs from run to run; what lies beyond the last table is not read.
        return torch.segment_reduce(values, "sum", lengths=touched.bounds.diff(), unsafe=True)

    def scale(self, one: Pass, largest: Tensor, norms: Tensor) -> Tensor:
        """(u,) factor of each row's gradient in its perturbation: radius / norm, 0 where the norm is 0.

        Args:
            largest: (T,) int64 N*.
            norms: (T,) float64 norm over more than the row, negative where the row's own is meant.
        """
        return scale(one.touched, one.sum.squares, self.counts, largest, self._rho, self._xi, norms)

    def perturb(self, one: Pass, scale: Tensor, *, step: int) -> Tensor:
        return self.kernels.perturb(self.group, one.touched, one.sum.gradient, scale, self.eta, step=step)

    def restore(self, touched: Touched, saved: Tensor) -> None:
        self.kernels.restore(self.group, touched, saved)

    def step(self, one: Pass, saved: Tensor | None, *, step: int) -> None:
        if self.decay:  # first, as AdamW's, and from the restored rows
            if saved is not None:
                self.restore(one.touched, saved)
                saved = None
            self.decay.catch_up(one.touched)
        means = one.sum.squares / self._dims[one.touched.tables] if self._rowwise else None
        self.kernels.step(
            self.group, one.touched, one.sum.gradient, means, saved, self.rates, self.slots, step=step
        )

    def set_lr(self, factor: float) -> None:
        """Let every table learn at `factor` times its own rate.

        Raises:
            ValueError: a table's weight decay would take all of it in one step.
        """
        for name, one in zip(self.names, self.learning, strict=True):
            if factor * one.optimizer.lr * one.optimizer.weight_decay >= 1:
                raise ValueError(
                    f"table {name}: {factor} times lr {one.optimizer.lr} times weight_decay "
                    f"{one.optimizer.weight_decay} is not below 1; take a smaller factor"
                )
        torch.mul(self._lr, factor, out=self.rates.lr)


def flat_weights(lookup: Any) -> Tensor:
    """The one buffer in which an FBGEMM lookup module holds all its tables, in their order."""
    tables: list[Tensor] = lookup.split_embedding_weights()
    total = sum(table.numel() for table in tables)
    for name in ("weights_dev", "weights_host", "weights"):
        buffer = getattr(lookup, name, None)
        if isinstance(buffer, Tensor) and buffer.numel() >= total > 0:
            return buffer.detach().view(-1)
    if total == 0:
        return torch.empty(0, device=tables[0].device if tables else None)
    raise ValueError(
        "the tables are in unified memory, which the rows engine cannot step; use compute kernel fused"
    )
