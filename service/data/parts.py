"""Part files: the encoded rows of a split in full row groups, and the way there from a raw file."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import Schema
from sparta.service.data.encode import Encoder, Map, encoded_type
from sparta.service.data.raw import RawFile
from sparta.service.data.spec import Spec

GROUP_ROWS = 65_536
"""Rows of a Parquet row group."""
PART_GROUPS = 16
"""Row groups of a part file."""


def encoder_of(dataset: str | Path, schema: Schema) -> Encoder:
    """The encoder of a dataset, which must be the one that the schema describes.

    Raises:
        DataError: a damaged dataset, or one with other columns.
    """
    encoder = Encoder.load(dataset)
    if encoder.spec.numbers != schema.dense or tuple(encoder.rows) != tuple(f.name for f in schema.sparse):
        raise DataError(f"{dataset}: transform.json has other columns than schema.json; prepare it again")
    return encoder


def encode_rows(encoder: Encoder, file: RawFile, folder: Path, *, labels_optional: bool = False) -> int:
    """Encode a raw file into `part-*.parquet` of a new folder, rows in order; the number of rows.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: a damaged file, a missing column, a value that breaks a rule.
    """
    file.check(encoder.kinds)
    with writing(folder), pool() as across:
        folder.mkdir(parents=True, exist_ok=True)
        with Parts(folder, encoder.spec) as parts:
            for chunk in file.read(encoder.kinds):
                parts.add(encoder.encode(chunk, labels_optional=labels_optional, across=across))
    return parts.rows


class Parts:
    """Part files of one split: full row groups whatever the size of the tables that come."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.rows = 0
        self._folder = folder
        self._schema = pa.schema([pa.field(n, t, nullable=False) for n, t in encoded_type(spec).items()])
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._groups = 0
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, table: pa.Table) -> None:
        self.rows += len(table)
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows >= GROUP_ROWS:
            whole = pa.concat_tables(self._waiting)
            full = len(whole) // GROUP_ROWS * GROUP_ROWS
            for first in range(0, full, GROUP_ROWS):
                self._group(whole.slice(first, GROUP_ROWS))
            self._waiting, self._waiting_rows = [whole.slice(full)], len(whole) - full

    def close(self) -> None:
        if self._waiting_rows:
            self._group(pa.concat_tables(self._waiting))
        self._waiting, self._waiting_rows = [], 0
        self._finish()

    def _group(self, rows: pa.Table) -> None:
        if self._file is None:
            path = self._folder / f"part-{self._groups // PART_GROUPS:05d}.parquet"
            # Checksums, because the loader verifies them.
            self._file = pq.ParquetWriter(path, self._schema, compression="zstd", write_page_checksum=True)
        self._file.write_table(rows.cast(self._schema), row_group_size=GROUP_ROWS)
        self._groups += 1
        if self._groups % PART_GROUPS == 0:
            self._finish()

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


@contextmanager
def pool() -> Iterator[Map]:
    """`map` over the cores; Arrow and numpy release the lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "prepare") as threads:
        yield threads.map


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says of a folder that cannot be written into one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
