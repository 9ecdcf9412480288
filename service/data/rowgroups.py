"""The row groups of one split: opened, decoded, checked, and permuted into arrays a batch is sliced from.

What the values must obey is in `rules.py`. A row group that cannot be decoded is read as one of nulls,
all of its rows bad; a storage that does not answer ends the run in any case.
"""

# R = rows of a row group, D = dense columns, T = tasks, L = ids of a multi-valued column in the group

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparta.models import storage
from sparta.models.errors import DataError
from sparta.models.schema import Schema
from sparta.service.data.rules import WAY_OUT, BadRows, Inspection


@dataclass(frozen=True)
class Bags:
    """A multi-valued column: row r holds values[offsets[r] : offsets[r + 1]]."""

    offsets: NDArray[np.int64]
    """(R + 1,)"""
    values: NDArray[np.int32]
    """(L,)"""


@dataclass(frozen=True)
class Block:
    """One row group in memory, its rows in the epoch's order."""

    ids: NDArray[np.int32]
    """(single-valued features, R)"""
    bags: tuple[Bags, ...]
    """The multi-valued features."""
    floats: NDArray[np.float32]
    """(D + T, R), or (D + T + 1, R) with sample weights: dense columns, labels, weights."""
    memory: NDArray[np.int32]
    """What `ids` and `floats` are views of; good for another row group when this one is done with."""
    bad: BadRows | None
    """Rows to be skipped, if any; what stands in them means nothing."""


class RowGroups:
    """The row groups of a split, counted through its files in the order of their names.

    Args:
        folder: of the dataset, local or a URL.
        skip_bad_rows: rows that break a rule are named in their block; else they are errors.

    Raises:
        DataError: a file that is no Parquet, a column that is missing or of the wrong type, or a number of
            rows other than the schema's.
        ConfigError: a URL whose kind is unknown here.
    """

    def __init__(
        self, folder: str | Path, schema: Schema, split: str, *, skip_bad_rows: bool = False
    ) -> None:
        if split not in schema.splits:
            held = ", ".join(schema.splits) or "none"
            raise DataError(
                f"{folder}: no split {split!r} (it has: {held}); name it in the spec and {WAY_OUT}"
            )
        self.rows: list[int] = []
        """Rows of every row group."""
        self._schema = schema
        self._skip = skip_bad_rows
        self._places: list[tuple[str | Path, int]] = []
        self._footers: dict[str | Path, pq.FileMetaData] = {}
        self._singles = [feature for feature in schema.sparse if not feature.multi]
        self._multis = [feature for feature in schema.sparse if feature.multi]
        self._types = _types(schema)
        place = storage.join(folder, split)
        with _readable(str(place)):
            paths = storage.files(place, ".parquet")
        for path in paths:
            with _readable(str(path)), _opened(path) as file:
                footer, columns = file.metadata, file.schema_arrow
            _check_types(path, columns, self._types)
            self._footers[path] = footer
            for group in range(footer.num_row_groups):
                self._places.append((path, group))
                self.rows.append(footer.row_group(group).num_rows)
        if sum(self.rows) != schema.splits[split]:
            raise DataError(
                f"{place}: holds {sum(self.rows)} rows in {len(self._footers)} files, but schema.json says "
                f"{schema.splits[split]}; files are missing or foreign: {WAY_OUT}"
            )

    def read(
        self, group: int, order: NDArray[np.intp] | None, memory: NDArray[np.int32] | None = None
    ) -> Block:
        """Decode one row group, check it, and put its rows into `order` (None = as they stand).

        `memory` is a former block's, to be overwritten: fresh pages cost as much as the permutation.

        Raises:
            DataError: the file cannot be read, or (unless such rows are skipped) it is damaged, or a value
                breaks its column's rule.
        """
        path, local = self._places[group]
        rows = self.rows[group]
        inspection = Inspection(str(path), local, rows, skip=self._skip)
        arrays = self._decoded(group, inspection)
        singles, words = len(self._singles), (len(self._types) - len(self._multis)) * rows
        if memory is None or memory.size < words:
            memory = np.empty(words, np.int32)
        ids = memory[: singles * rows].reshape(singles, rows)
        floats = memory[singles * rows : words].view(np.float32).reshape(-1, rows)
        for into, column in zip((*ids, *floats), self._checked(inspection, arrays), strict=True):
            if order is None:
                into[:] = column
            else:
                np.take(column, order, out=into, mode="clip")  # "raise", the default, would buffer the output
        bags = tuple(
            _permuted(*inspection.bags(feature, arrays[feature.name]), order) for feature in self._multis
        )
        return Block(ids=ids, bags=bags, floats=floats, memory=memory, bad=inspection.bad(order))

    def _decoded(self, group: int, inspection: Inspection) -> dict[str, pa.Array]:
        """The columns of a row group, each in one piece; nulls if it is damaged, which is noted."""
        path, local = self._places[group]
        rows = self.rows[group]
        with (
            _readable(f"{path}: row group {local}"),
            _opened(path, metadata=self._footers[path], page_checksum_verification=True) as file,
        ):
            try:
                # One thread: the trainer's threads own the other cores.
                table = file.read_row_group(local, columns=list(self._types), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                if not _of_content(error):
                    raise
                inspection.damaged(f"not readable as Parquet ({_first_line(error)})")
            else:
                if table.num_rows == rows:
                    return {name: _array(table.column(name)) for name in self._types}
                inspection.damaged(f"{table.num_rows} rows decoded of {rows}")
        return {name: pa.nulls(rows, kind) for name, kind in self._types.items()}

    def _checked(
        self, inspection: Inspection, arrays: Mapping[str, pa.Array]
    ) -> Iterator[NDArray[np.generic]]:
        """The columns of one value a row; each is checked just before it is used, so while it is cached."""
        for feature in self._singles:
            yield inspection.ids(feature, arrays[feature.name])
        for name in self._schema.dense:
            yield inspection.finite(name, arrays[name])
        for name in self._schema.labels:
            yield inspection.labels(name, arrays[name])
        if self._schema.weight:
            yield inspection.weights(self._schema.weight, arrays[self._schema.weight])


@contextmanager
def _opened(path: str | Path, **options: Any) -> Iterator[pq.ParquetFile]:
    # From afar a row group comes in a few large pieces; on a disk that gains nothing.
    buffered = storage.is_url(path)
    with storage.opened(path) as source, pq.ParquetFile(source, pre_buffer=buffered, **options) as file:
        yield file


@contextmanager
def _readable(place: str) -> Iterator[None]:
    """Turn what Arrow or a storage says of a file into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        way_out = WAY_OUT if _of_content(error) else f"see that its storage answers, or {WAY_OUT}"
        kind = " as Parquet" if _of_content(error) else ""
        raise DataError(f"{place}: not readable{kind} ({_first_line(error)}); {way_out}") from error


def _of_content(error: Exception) -> bool:
    """Whether the bytes are at fault, not a storage that fails to give them: Arrow's own OSErrors have no number."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _types(schema: Schema) -> dict[str, pa.DataType]:
    """The columns that must be there."""
    types = {feature.name: pa.list_(pa.int32()) if feature.multi else pa.int32() for feature in schema.sparse}
    types |= {name: pa.float32() for name in (*schema.dense, *schema.labels)}
    return types | {schema.weight: pa.float32()} if schema.weight else types


def _check_types(path: str | Path, columns: pa.Schema, expected: Mapping[str, pa.DataType]) -> None:
    for name, wanted in expected.items():
        index = columns.get_field_index(name)
        if index < 0:
            raise DataError(f"{path}: column {name!r} of schema.json is missing; {WAY_OUT}")
        found = columns.field(index).type
        plain = pa.list_(found.value_type) if pa.types.is_list(found) else found  # its item has any name
        if plain != wanted:
            raise DataError(f"{path}: column {name!r} is {found}, it must be {wanted}; {WAY_OUT}")


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _permuted(offsets: NDArray[np.int32], ids: NDArray[np.int32], order: NDArray[np.intp] | None) -> Bags:
    """One multi-valued column in the given order, without a loop over its rows."""
    if order is None:
        return Bags(offsets.astype(np.int64), ids.copy())
    lengths = np.diff(offsets)[order]
    ends = np.cumsum(lengths, dtype=np.int64)
    # Entry j of the result comes from where its bag began, plus its place in the bag.
    shift = offsets[:-1][order] - (ends - lengths)
    source = np.repeat(shift, lengths) + np.arange(len(ids))
    return Bags(np.concatenate([np.zeros(1, np.int64), ends]), ids[source])
