"""Weights as checkpoints see them: one logical, unpadded tensor a table, whatever the plan.

`tables/<name>` is a LogicalTable, which torch.distributed.checkpoint saves and re-reads under another plan
and another number of ranks; `dense/<name>` are plain tensors, equal on every rank. torch's ShardedTensor
would do but for padding: it refuses views, and the logical part of a padded shard is one.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import get_unwrapped_module

from sparta.models.embedding import table_name
from sparta.models.errors import DataError
from sparta.sharding.record import Plan

TABLES = "tables/"
DENSE = "dense/"
OPTIM = "optim/"
STEP = OPTIM + "step"
SUM = "/sum"
BY_COLUMNS = SUM + "@"
"""What follows are the stored columns over which an accumulator is kept, where they are not just the table's."""


BLOCK_BYTES = 1 << 28
"""Of a table's rows in one piece of a checkpoint, at most."""


@dataclass(frozen=True)
class Window:
    """This rank's piece of a table: where it starts, and its logical entries (a view of the live weights)."""

    row: int
    column: int
    values: Tensor

    @property
    def offsets(self) -> torch.Size:
        return torch.Size((self.row, self.column))


class LogicalTable(Tensor):
    """A whole table of rows x dim, of which this rank holds some windows, possibly none.

    A tensor in name and shape only, because torch.distributed.checkpoint asks for one; the methods with
    double underscores are its protocol for tensors in pieces.
    """

    windows: list[Window]
    copies: list[Window]
    """Further windows here on what `windows` covers: nobody stores them, but they are filled too."""

    @staticmethod
    def __new__(
        cls, rows: int, dim: int, windows: Sequence[Window], dtype: torch.dtype = torch.float32
    ) -> "LogicalTable":
        made: LogicalTable = Tensor._make_wrapper_subclass(cls, (rows, dim), dtype=dtype)
        held = [window for window in windows if window.values.numel()]
        firsts = {window.offsets: window for window in reversed(held)}
        made.windows = [window for window in held if firsts[window.offsets] is window]
        made.copies = [window for window in held if firsts[window.offsets] is not window]
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"a LogicalTable is in pieces over the ranks and cannot be used in {func}")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LogicalTable({tuple(self.shape)}, {len(self.windows)} windows here)"

    def head(self, rows: int) -> "LogicalTable":
        """The first rows as a table of their own; shares memory."""
        held = [
            Window(window.row, window.column, window.values[: max(0, rows - window.row)])
            for window in (*self.windows, *self.copies)
        ]
        return LogicalTable(rows, self.shape[1], held, dtype=self.dtype)

    def check(self, name: str, other: Tensor) -> None:
        """See whether `fill_from` can take another table.

        Raises:
            DataError: another shape, or other windows.
        """
        check_shape(name, self.shape, other.shape)
        if isinstance(other, LogicalTable):
            theirs = {window.offsets: window.values.shape for window in other.windows}
            if any(theirs.get(window.offsets) != window.values.shape for window in self.windows):
                raise DataError(f"{name} was taken under another plan; save and load it with a checkpoint")

    def fill_from(self, other: Tensor) -> None:
        """Take the values of a table in the same windows, or of a whole tensor, once checked."""
        theirs = {w.offsets: w.values for w in other.windows} if isinstance(other, LogicalTable) else None
        for window in self.windows:
            rows, columns = window.values.shape
            window.values.copy_(
                other[window.row : window.row + rows, window.column : window.column + columns]
                if theirs is None
                else theirs[window.offsets]
            )
        held = {window.offsets: window.values for window in self.windows}
        for copy in self.copies:
            copy.values.copy_(held[copy.offsets])

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, block.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(block.offsets, block.values.size()),
                    properties=TensorProperties(dtype=block.values.dtype),
                    size=self.shape,
                ),
            )
            for window in self.windows
            for block in _blocks(window)
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        blocks = (block for window in self.windows for block in _blocks(window))
        return [ChunkStorageMetadata(block.offsets, block.values.size()) for block in blocks]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for window in self.windows:
            for block in _blocks(window):
                if block.offsets == index.offset:
                    return block.values
        raise ValueError(f"no window of {index.fqn} starts at {index.offset} on this rank")


def _blocks(window: Window) -> Iterator[Window]:
    """Rows of a window that are stored as one: a reader has to hold a whole block, however little it needs."""
    rows = max(1, BLOCK_BYTES // max(1, window.values.shape[1] * window.values.element_size()))
    for first in range(0, len(window.values), rows):
        yield Window(window.row + first, window.column, window.values[first : first + rows])


State = dict[str, Tensor]


def sharded_collections(module: nn.Module) -> Iterator[tuple[str, ShardedEmbeddingBagCollection]]:
    """Each sharded collection of a model with its path."""
    for path, child in module.named_modules():
        if isinstance(child, ShardedEmbeddingBagCollection):
            yield path, child


def local_bags(module: nn.Module) -> Iterator[tuple[list[tuple[str, int, int]], Any]]:
    """Each of TorchRec's bags on this rank, after (table, first row, first column) of its shards or replicas."""
    for _, collection in sharded_collections(module):
        for lookup in collection._lookups:
            for bag in lookup._emb_modules:
                tables = bag.config.embedding_tables
                offsets = [t.local_metadata.shard_offsets if t.local_metadata else (0, 0) for t in tables]
                yield [(table_name(t.name), *place) for t, place in zip(tables, offsets, strict=True)], bag


def local_shards(module: nn.Module) -> Iterator[tuple[str, int, int, Tensor]]:
    """(table, first row, first column, live weights with padding) of every shard or replica on this rank."""
    for shards, bag in local_bags(module):
        for (name, row, column), weights in zip(shards, bag.split_embedding_weights(), strict=True):
            yield name, row, column, weights.detach()


def logical_tables(module: nn.Module, plan: Plan) -> dict[str, LogicalTable]:
    """Every table of the plan, with this rank's windows on the live weights."""
    windows: dict[str, list[Window]] = {table.name: [] for table in plan.tables}
    for name, row, column, weights in local_shards(module):
        real = max(0, plan.table(name).dim - column)
        windows[name].append(Window(row, column, weights[:, :real]))
    return {table.name: LogicalTable(table.rows, table.dim, windows[table.name]) for table in plan.tables}


def dense_tensors(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Parameters and persistent buffers of everything that is not a table, by name in the user's model."""
    # Wrappers name parameters without themselves, but modules with; unwrapped, names match.
    module = get_unwrapped_module(module)
    inside = tuple(f"{path}." if path else "" for path, _ in sharded_collections(module))
    parameters = {n: p for n, p in module.named_parameters() if not n.startswith(inside)}
    passing = {  # asking for module.state_dict() would have all rows pay their weight decay
        f"{path}.{name}" if path else name
        for path, child in module.named_modules()
        for name in child._non_persistent_buffers_set
    }
    buffers = {n: b for n, b in module.named_buffers() if not n.startswith(inside) and n not in passing}
    return parameters, buffers


def state_of(module: nn.Module, plan: Plan) -> State:
    """The weights in their plan-independent form; tensors share memory with the model."""
    state: State = {TABLES + name: table for name, table in logical_tables(module, plan).items()}
    parameters, buffers = dense_tensors(module)
    state.update({DENSE + name: tensor.detach() for name, tensor in {**parameters, **buffers}.items()})
    return state


@torch.no_grad()
def load_into(module: nn.Module, plan: Plan, state: Mapping[str, Tensor]) -> None:
    """Copy a state made by `state_of`, or one of whole tensors, into the model.

    Raises:
        DataError: a key is missing or too many, or a shape differs.
    """
    mine = state_of(module, plan)
    check_all(mine, state)  # before anything is copied
    for name, target in mine.items():
        if isinstance(target, LogicalTable):
            target.fill_from(state[name])
        else:
            target.copy_(state[name])


def check_names(mine: Collection[str], saved: Collection[str]) -> None:
    """See whether a saved state has the names that this job's has.

    torch.distributed.checkpoint leaves out what the job does not have and calls the rest missing: ask here first.

    Raises:
        DataError: it has not.
    """
    for name in sorted(set(mine) ^ set(saved)):
        table = name.partition(BY_COLUMNS)[0].removesuffix(SUM)
        here, there = (
            [key for key in keys if key == table + SUM or key.startswith(table + BY_COLUMNS)]
            for keys in (mine, saved)
        )
        if here and there and name in (*here, *there):
            raise DataError(
                f"{name}: the saved accumulators are {_over(there[0])}, the job's are {_over(here[0])}; take the "
                "plan and engine it was saved under, or load the weights only; engine rows takes its own under any"
                " plan"
            )
        problem = "is missing in the saved state" if name in mine else "is not in the model"
        or_weights = "" if name.startswith((TABLES, DENSE)) else ", or load the weights only"
        raise DataError(f"{name} {problem}: it belongs to another job; use that job.yaml{or_weights}")


def _over(name: str) -> str:
    columns = name.partition(BY_COLUMNS)[2]
    return f"of a row's columns {columns}" if columns else "of whole rows"


def check_all(mine: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """See whether a state can be taken.

    Raises:
        DataError: a key is missing or too many, a shape differs, or the plan of pieces.
    """
    check_names(mine.keys(), state.keys())
    for name, target in mine.items():
        if isinstance(target, LogicalTable):
            target.check(name, state[name])
        else:
            check_shape(name, target.shape, state[name].shape)


def check_shape(name: str, mine: torch.Size, saved: torch.Size) -> None:
    """See whether a tensor of a saved state is as large as this job's.

    Raises:
        DataError: it is not.
    """
    if saved != mine:
        raise DataError(
            f"{name} is {tuple(saved)} in the saved state, {tuple(mine)} in the model; the job's model must be the "
            "one it was trained with"
        )
