"""The row groups of one split: opened, decoded, checked, and permuted into arrays a batch is sliced from.

Everything a later layer takes for granted is checked here, once per row group: FBGEMM would silently read
row 0 for an id outside its table, and one NaN ends a run. A message names file, row group, column, value.
"""

# R = rows of a row group, D = dense columns, T = tasks, L = ids of a multi-valued column in the group

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparta.models.errors import DataError
from sparta.models.schema import Feature, Schema

_WAY_OUT = "prepare the dataset again with `sparta prepare`"


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


class RowGroups:
    """The row groups of a split, counted through its files in the order of their names.

    Raises:
        DataError: a file that is no Parquet, a column that is missing or of the wrong type, or a number of
            rows other than the schema's.
    """

    def __init__(self, folder: Path, schema: Schema, split: str) -> None:
        if split not in schema.splits:
            held = ", ".join(schema.splits) or "none"
            raise DataError(
                f"{folder}: no split {split!r} (it has: {held}); name it in the spec and {_WAY_OUT}"
            )
        self.rows: list[int] = []
        """Rows of every row group."""
        self._schema = schema
        self._places: list[tuple[Path, int]] = []
        self._footers: dict[Path, pq.FileMetaData] = {}
        self._singles = [feature for feature in schema.sparse if not feature.multi]
        self._multis = [feature for feature in schema.sparse if feature.multi]
        self._columns = [*(feature.name for feature in schema.sparse), *schema.dense, *schema.labels]
        if schema.weight:
            self._columns.append(schema.weight)
        for path in sorted((folder / split).glob("*.parquet")):
            with _readable(str(path)), pq.ParquetFile(path) as file:
                footer, columns = file.metadata, file.schema_arrow
            _check_types(path, columns, schema)
            self._footers[path] = footer
            for group in range(footer.num_row_groups):
                self._places.append((path, group))
                self.rows.append(footer.row_group(group).num_rows)
        if sum(self.rows) != schema.splits[split]:
            raise DataError(
                f"{folder / split}: holds {sum(self.rows)} rows in {len(self._footers)} files, but schema.json says "
                f"{schema.splits[split]}; files are missing or foreign: {_WAY_OUT}"
            )

    def read(
        self, group: int, order: NDArray[np.intp] | None, memory: NDArray[np.int32] | None = None
    ) -> Block:
        """Decode one row group, check it, and put its rows into `order` (None = as they stand).

        `memory` is a former block's, to be overwritten: fresh pages cost as much as the permutation.

        Raises:
            DataError: the file is damaged, or a value breaks its column's rule.
        """
        path, local = self._places[group]
        place, rows = f"{path}: row group {local}", self.rows[group]
        footer = self._footers[path]
        with _readable(place), pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
            # One thread: the trainer's threads own the other cores.
            table = file.read_row_group(local, columns=self._columns, use_threads=False)
        if table.num_rows != rows:
            raise DataError(f"{place}: {table.num_rows} rows decoded of {rows}; {_WAY_OUT}")
        arrays = {name: _array(place, name, table.column(name)) for name in self._columns}
        singles, words = len(self._singles), (len(self._columns) - len(self._multis)) * rows
        if memory is None or memory.size < words:
            memory = np.empty(words, np.int32)
        ids = memory[: singles * rows].reshape(singles, rows)
        floats = memory[singles * rows : words].view(np.float32).reshape(-1, rows)
        for into, column in zip((*ids, *floats), self._checked(place, arrays), strict=True):
            if order is None:
                into[:] = column
            else:
                np.take(column, order, out=into, mode="clip")  # "raise", the default, would buffer the output
        bags = tuple(_bags(place, feature, arrays[feature.name], order) for feature in self._multis)
        return Block(ids=ids, bags=bags, floats=floats, memory=memory)

    def _checked(self, place: str, arrays: Mapping[str, pa.Array]) -> Iterator[NDArray[np.generic]]:
        """The columns of one value a row; each is checked just before it is used, so while it is cached."""
        for feature in self._singles:
            yield _ids(place, feature, arrays[feature.name])
        for name in self._schema.dense:
            yield _finite(place, name, arrays[name])
        for name in self._schema.labels:
            yield _labels(place, name, arrays[name])
        if self._schema.weight:
            yield _weights(place, self._schema.weight, arrays[self._schema.weight])


@contextmanager
def _readable(place: str) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{place}: not readable as Parquet ({reason}); {_WAY_OUT}") from error


def _check_types(path: Path, columns: pa.Schema, schema: Schema) -> None:
    expected = {name: pa.float32() for name in (*schema.dense, *schema.labels)}
    if schema.weight:
        expected[schema.weight] = pa.float32()
    for feature in schema.sparse:
        expected[feature.name] = pa.list_(pa.int32()) if feature.multi else pa.int32()
    for name, wanted in expected.items():
        index = columns.get_field_index(name)
        if index < 0:
            raise DataError(f"{path}: column {name!r} of schema.json is missing; {_WAY_OUT}")
        found = columns.field(index).type
        plain = pa.list_(found.value_type) if pa.types.is_list(found) else found  # its item has any name
        if plain != wanted:
            raise DataError(f"{path}: column {name!r} is {found}, it must be {wanted}; {_WAY_OUT}")


def _array(place: str, name: str, column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece, without nulls."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise _broken(place, name, row, "null", "is no value of a prepared column")
    return array


def _broken(place: str, name: str, row: int, value: object, rule: str) -> DataError:
    return DataError(f"{place}, column {name!r}, row {row}: {value} {rule}; {_WAY_OUT}")


def _ids(place: str, feature: Feature, array: pa.Array) -> NDArray[np.int32]:
    values: NDArray[np.int32] = array.to_numpy()
    _check_ids(place, feature, values, None)
    return values


def _check_ids(
    place: str, feature: Feature, values: NDArray[np.int32], offsets: NDArray[np.int32] | None
) -> None:
    if not values.size or (values.min() >= 0 and values.max() < feature.rows):
        return
    at = int(np.argmax((values < 0) | (values >= feature.rows)))
    row = at if offsets is None else int(np.searchsorted(offsets, at, side="right")) - 1
    rule = f"is outside its table of {feature.rows} rows"
    raise _broken(place, feature.name, row, f"id {values[at]}", rule)


def _finite(place: str, name: str, array: pa.Array) -> NDArray[np.float32]:
    values: NDArray[np.float32] = array.to_numpy()
    good = np.isfinite(values)
    if not good.all():
        row = int(np.argmin(good))
        raise _broken(place, name, row, values[row], "is not finite")
    return values


def _labels(place: str, name: str, array: pa.Array) -> NDArray[np.float32]:
    values: NDArray[np.float32] = array.to_numpy()
    good = (values == 0) | (values == 1)
    if not good.all():
        row = int(np.argmin(good))
        raise _broken(place, name, row, f"label {values[row]}", "is neither 0 nor 1")
    return values


def _weights(place: str, name: str, array: pa.Array) -> NDArray[np.float32]:
    values = _finite(place, name, array)
    if values.size and values.min() < 0:
        row = int(np.argmin(values))
        raise _broken(place, name, row, f"weight {values[row]}", "is negative")
    return values


def _bags(place: str, feature: Feature, array: pa.ListArray, order: NDArray[np.intp] | None) -> Bags:
    """One multi-valued column in the given order, without a loop over its rows."""
    offsets: NDArray[np.int32] = array.offsets.to_numpy()
    values = array.values[int(offsets[0]) : int(offsets[-1])]  # an array may be a slice of a longer one
    offsets = offsets - offsets[0]
    if values.null_count:
        at = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise _broken(place, feature.name, row, "null in a list", "is no id; leave it out of the list")
    ids: NDArray[np.int32] = values.to_numpy()
    _check_ids(place, feature, ids, offsets)
    if order is None:
        return Bags(offsets.astype(np.int64), ids.copy())
    lengths = np.diff(offsets)[order]
    ends = np.cumsum(lengths, dtype=np.int64)
    # Entry j of the result comes from where its bag began, plus its place in the bag.
    shift = offsets[:-1][order] - (ends - lengths)
    source = np.repeat(shift, lengths) + np.arange(len(ids))
    return Bags(np.concatenate([np.zeros(1, np.int64), ends]), ids[source])
