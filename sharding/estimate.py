"""Bytes a table takes on a rank, by our own count (TorchRec's counts unknown optimizers as nothing).

Of a shard with r rows and c columns (padding included) of a table of R rows, under a global batch of B slots:
- weights: 4 r c
- optimizer: what the engine keeps (sgd 0, adagrad 4 r c, rowwise_adagrad 4 r, adam, nadam and radam 8 r c; engine
  rows also 8 r of occurrences for Helen, 8 r for weight decay, and on a CPU a stamp of 4 r)
- buffers of one step, at one id a bag, so n = B r / R ids that reach it: the ids 8 n, bag offsets 8 B, and the
  pooled rows it makes for every slot, forward and gradient: 2 * 4 B c; engine rows also, if every id is another
  row: 36 n (on a GPU 80 n and 4 n c) and its gradient 4 n c, with an ascend rule 8 n and 2 * 4 n c more
Each rank also receives, for its own slots, the pooled rows of every table and sends their gradients back:
2 * 4 (B / ranks) sum of the padded widths (`received_bytes`). The dense part of the model is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sparta.models.embedding import Table, padded
from sparta.sharding.engines import FLOAT_BYTES, Engine, TableOptimizer

INDEX_BYTES = 8
PASSES = 2  # a pooled value forward, its gradient backward


@dataclass(frozen=True)
class ShardBytes:
    """Bytes of one shard on its rank."""

    weights: int
    optimizer: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.buffers


def shard_bytes(
    table: Table,
    optimizer: TableOptimizer,
    engine: Engine,
    *,
    rows: int,
    columns: int,
    batch_size: int,
    device: str,
) -> ShardBytes:
    """Bytes of a shard of `rows` and `columns` (padding included) of a table."""
    ids = -(-batch_size * rows // table.rows)
    return ShardBytes(
        weights=rows * columns * FLOAT_BYTES,
        optimizer=engine.state_bytes(optimizer, rows, columns, device),
        buffers=(ids + batch_size) * INDEX_BYTES
        + PASSES * batch_size * columns * FLOAT_BYTES
        + engine.buffer_bytes(optimizer, ids, columns, device),
    )


def received_bytes(tables: Sequence[Table], *, batch_size: int, ranks: int) -> int:
    """Bytes of the pooled rows and gradients of a rank's own slots, all tables."""
    slots = -(-batch_size // ranks)
    return PASSES * slots * sum(padded(table.dim) for table in tables) * FLOAT_BYTES
