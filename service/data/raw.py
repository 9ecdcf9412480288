"""Streaming readers of raw files: CSV and TSV (also .gz) and Parquet, a record batch at a time.

Columns arrive under the names of the spec, in one of three kinds: `category` (anything with a text form, as
the file stores it), `number` (float64 or what casts to it) and `time` (as the file stores it). Whatever goes
wrong is one DataError that names the file and, where there is one, the row and column. Rows count from 1,
a header line not included.
"""

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sparta.models.errors import DataError
from sparta.service.data.spec import Spec

Kind = Literal["category", "number", "time"]

BATCH_ROWS = 131_072
"""Rows of a batch read from Parquet."""
BLOCK_BYTES = 16 << 20
"""Text that is parsed at a time; a line must fit."""


@dataclass(frozen=True)
class Place:
    """Where a batch stands, for the errors."""

    file: Path
    first: int = 0
    """Rows of the file before it."""

    def __call__(self, index: int, column: str) -> str:
        return f"{self.file}: row {self.first + int(index) + 1}, column {column!r}"


@dataclass(frozen=True)
class Chunk:
    place: Place
    batch: pa.RecordBatch
    read: float
    """Share of the file's bytes read so far."""


@dataclass(frozen=True)
class RawFile:
    """One raw file and how to read it."""

    path: Path
    spec: Spec
    optional: frozenset[str] = frozenset()
    """Columns that may be absent (the labels of a file to predict on)."""

    @property
    def parquet(self) -> bool:
        name = self.path.name.lower().removesuffix(".gz")
        if name.endswith((".csv", ".tsv")):
            return False
        if name.endswith(".parquet") or self.spec.format == "parquet":
            return True
        if self.spec.format is None:
            raise DataError(
                f"{self.path}: neither .csv, .tsv nor .parquet; say format: in the spec, such as format: csv"
            )
        return False

    def check(self, kinds: Mapping[str, Kind]) -> None:
        """Open the file and compare its columns with the ones wanted.

        Raises:
            DataError: unreadable, a column missing, twice there or of the wrong type.
        """
        types = self.types
        for name, kind in kinds.items():
            if name not in types:
                if name in self.optional:
                    continue
                undivided = not self.parquet and len(types) == 1
                raise DataError(
                    f"{self.path}: no column {name!r}; it has {_some(types)}; mend the file, the spec's columns "
                    + ("or delimiter" if undivided else "or rename")
                )
            self._check_type(name, types[name], kind)

    @cached_property
    def types(self) -> dict[str, pa.DataType | None]:
        """Column names as the spec has them, and their types; None in text files."""
        names = [self.spec.rename.get(name, name) for name in self._raw_names]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{self.path}: two columns are named {name!r}; rename one of them")
        types = pq.read_schema(self.path).types if self.parquet else [None] * len(names)
        return dict(zip(names, types, strict=True))

    @cached_property
    def _raw_names(self) -> list[str]:
        """Column names as the file or, for a text file without a header, the spec has them."""
        with _one_line(self.path):
            return list(pq.read_schema(self.path).names) if self.parquet else self._text_names()

    def read(self, kinds: Mapping[str, Kind]) -> Iterator[Chunk]:
        """The file in record batches with the columns of `kinds` that it has, in order."""
        self.check(kinds)
        kinds = {name: kind for name, kind in kinds.items() if name in self.types}
        first = 0
        with _one_line(self.path, lambda: self._blame(kinds, first)):
            for batch, read in self._parquet(kinds) if self.parquet else self._text(kinds):
                yield Chunk(Place(self.path, first), batch.rename_columns(list(kinds)), read)
                first += len(batch)

    def _raw(self, names: Collection[str]) -> list[str]:
        raw = dict(zip(self.types, self._raw_names, strict=True))
        return [raw[name] for name in names]

    def _check_type(self, name: str, kind_type: pa.DataType | None, kind: Kind) -> None:
        if kind_type is None or pa.types.is_null(kind_type):
            return
        number = (
            pa.types.is_integer(kind_type)
            or pa.types.is_floating(kind_type)
            or pa.types.is_boolean(kind_type)
            or pa.types.is_decimal(kind_type)
        )
        if kind == "number" and not number:
            raise DataError(f"{self.path}: column {name!r} holds {kind_type}, not numbers; convert it")
        text = pa.types.is_string(kind_type) or pa.types.is_large_string(kind_type)
        if kind == "time" and not (number or text or pa.types.is_temporal(kind_type)):
            raise DataError(
                f"{self.path}: column {name!r} holds {kind_type}, not times or numbers; convert it"
            )
        if kind == "category":
            lists = is_list(kind_type)
            features = [f for f, column in self.spec.categories.items() if not column.lists]
            narrow = [feature for feature in features if self.spec.source(feature) == name]
            if lists and narrow:
                raise DataError(
                    f"{self.path}: column {name!r} holds lists; say sparse.{narrow[0]}.multi: true in the spec"
                )
            value = kind_type.value_type if lists or pa.types.is_dictionary(kind_type) else kind_type
            if pa.types.is_nested(value) or pa.types.is_binary(value) or pa.types.is_large_binary(value):
                raise DataError(
                    f"{self.path}: column {name!r} holds {kind_type}, which is no category; convert it to text"
                )

    def _parquet(self, kinds: Mapping[str, Kind]) -> Iterator[tuple[pa.RecordBatch, float]]:
        names = self._raw(kinds)
        text = [raw for raw, name in zip(names, kinds, strict=True) if _is_text(self.types[name])]
        # Buffered columns: else a file with one huge row group would be held as a whole.
        with pq.ParquetFile(
            self.path, read_dictionary=text, pre_buffer=False, buffer_size=1 << 20
        ) as parquet:
            total, done = parquet.metadata.num_rows, 0
            for batch in parquet.iter_batches(BATCH_ROWS, columns=names, use_threads=True):
                done += len(batch)
                yield batch.select(names), done / total

    def _text(
        self, kinds: Mapping[str, Kind], as_text: bool = False
    ) -> Iterator[tuple[pa.RecordBatch, float]]:
        names = self._raw(kinds)
        types = [pa.float64() if kind == "number" and not as_text else pa.string() for kind in kinds.values()]
        size = max(self.path.stat().st_size, 1)
        with pa.OSFile(str(self.path)) as file:
            reader = csv.open_csv(
                pa.CompressedInputStream(file, "gzip") if self._gzipped else file,
                read_options=csv.ReadOptions(
                    column_names=self._raw_names if self.spec.columns else None, block_size=BLOCK_BYTES
                ),
                parse_options=self._parse_options(),
                convert_options=csv.ConvertOptions(
                    column_types=dict(zip(names, types, strict=True)),
                    include_columns=names,
                    null_values=list(self.spec.missing),
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                if len(batch):
                    yield batch, min(file.tell() / size, 1.0)

    @property
    def _gzipped(self) -> bool:
        return self.path.name.lower().endswith(".gz")

    def _tabs(self) -> bool:
        name = self.path.name.lower().removesuffix(".gz")
        return name.endswith(".tsv") or (self.spec.format == "tsv" and not name.endswith(".csv"))

    def _parse_options(self) -> csv.ParseOptions:
        quote = self.spec.quote if self.spec.quote is not None else ("" if self._tabs() else '"')
        return csv.ParseOptions(
            delimiter=self.spec.delimiter or ("\t" if self._tabs() else ","),
            quote_char=quote or False,
            newlines_in_values=bool(quote),
        )

    def _text_names(self) -> list[str]:
        """Column names of a text file: its header line, or the spec's."""
        with pa.OSFile(str(self.path)) as file:
            stream = pa.CompressedInputStream(file, "gzip") if self._gzipped else file
            line = b""
            while b"\n" not in line and (more := stream.read(1 << 16)):
                line += more
        if not line:
            raise DataError(f"{self.path}: the file is empty; it needs at least one row")
        # Header or not, the first line is parsed as one: only its fields count here.
        head: Any = csv.open_csv(
            io.BytesIO(line.split(b"\n")[0] + b"\n"), parse_options=self._parse_options()
        )
        names: list[str] = head.schema.names
        if self.spec.columns is None:
            return names
        columns = [name for name in self.spec.columns if self._given(name)]
        for wanted in (list(self.spec.columns), columns):
            if len(names) == len(wanted):
                return wanted
        raise DataError(
            f"{self.path}: row 1 has {len(names)} fields, the spec's `columns` names {len(self.spec.columns)}; "
            "mend either, or the delimiter"
        )

    def _given(self, name: str) -> bool:
        return self.spec.rename.get(name, name) not in self.optional

    def _blame(self, kinds: Mapping[str, Kind], first: int) -> str | None:
        """The first field from row `first` on that is no number, found by reading the text once more."""
        if self.parquet:
            return None
        at = 0
        for batch, _ in self._text(kinds, as_text=True):
            for name, column in zip(kinds, batch.columns, strict=True):
                if kinds[name] == "number" and at + len(batch) > first:
                    bad = _first_bad(column, self.spec.missing)
                    if bad is not None:
                        value = column[bad].as_py()
                        place = Place(self.path, at)(bad, name)
                        return f"{place}: {value!r} is no number; mend it, or add it to the spec's missing"
            at += len(batch)
        return None


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _first_bad(column: pa.Array, missing: Collection[str]) -> int | None:
    """Index of the first text that is no number, by halving."""
    empty = pc.is_in(column, value_set=pa.array(missing, pa.string()))
    column = pc.if_else(empty, pa.scalar(None, pa.string()), column)
    if _casts(column):
        return None
    low, high = 0, len(column)  # the first bad one is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _casts(column[low:middle]) else (low, middle)
    return low


def _casts(column: pa.Array) -> bool:
    try:
        pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")


@contextmanager
def _one_line(path: Path, blame: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Turn what pyarrow and the system raise about a file into one line that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; mend the path") from error
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path}: {error.strerror or 'not readable'}; mend the path") from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        found = None
        if isinstance(error, pa.ArrowInvalid):
            with suppress(OSError, pa.ArrowException):
                found = blame()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        way_out = "it may be cut short or damaged"
        if "CSV parse error" in reason:
            way_out = "mend the row, or the spec's delimiter or quote"
        raise DataError(found or f"{path}: not readable ({reason}); {way_out}") from error
