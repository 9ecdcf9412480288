"""`sparta prepare`: raw files to an encoded dataset folder, in two streaming passes.

The first pass reads the training rows and counts categories and sums numbers; the second encodes every
row. Memory is that of the vocabularies and a few batches. Everything is written to a hidden folder beside
the target, `schema.json` last, and renamed into place: there is a whole dataset or none.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import SPLITS, Feature, Schema
from sparta.service.data.encode import (
    Categories,
    Encoder,
    Map,
    Moments,
    column_kinds,
    encoded_type,
    numbers,
    raw_categories,
    shaped,
    standardised,
)
from sparta.service.data.raw import Chunk, RawFile
from sparta.service.data.spec import SparseColumn, Spec
from sparta.service.data.split import Splitter, Track
from sparta.service.data.vocab import Counter, Counts, Vocabulary, buckets, load_vocabulary

GROUP_ROWS = 65_536
"""Rows of a Parquet row group."""
PART_GROUPS = 16
"""Row groups of a part file."""


def prepare(spec: Spec, out: Path, *, progress: bool = True, overwrite: bool = False) -> Schema:
    """Make the dataset folder `out`.

    `progress` shows a bar on stderr when that is a terminal; `overwrite` replaces an existing dataset.

    Raises:
        ConfigError: `out` holds something already, or cannot be written.
        DataError: a raw file is missing, damaged or breaks a rule; an empty split.
    """
    files = {split: [RawFile(path, spec) for path in paths] for split, paths in spec.paths().items()}
    everything = [file for group in files.values() for file in group]
    for file in everything:
        file.check(column_kinds(spec))
    passes = 3 if spec.split and spec.split.time else 2
    with _workspace(out, overwrite) as folder, _pool() as across, _bar(everything, passes, progress) as track:
        splitter = Splitter(files, spec.split, track)
        _learn(spec, splitter, folder, across)
        encoder = Encoder.load(folder)
        rows = _encode(encoder, splitter, folder, across)
        schema = Schema(
            dense=spec.numbers,
            sparse=tuple(
                Feature(name=name, rows=encoder.rows[name], multi=column.lists)
                for name, column in spec.categories.items()
            ),
            labels=spec.labels,
            weight=spec.weight,
            splits=rows,
            fingerprint=_fingerprint(spec, folder),
            attainable=spec.attainable,
        )
        schema.save(folder)
    return schema


def encode_file(dataset: Path, schema: Schema, raw_file: Path, out_split_folder: Path) -> int:
    """Encode a raw file with a dataset's vocabularies into `part-*.parquet`, rows in order; the number of rows.

    Labels may be absent or null and become 0; absent weights become 1.

    Raises:
        DataError: a damaged or empty file, a missing column, a dataset other than the schema's.
    """
    encoder = Encoder.load(dataset)
    spec = encoder.spec
    if spec.numbers != schema.dense or tuple(spec.categories) != tuple(f.name for f in schema.sparse):
        raise DataError(f"{dataset}: transform.json has other columns than schema.json; prepare it again")
    file = RawFile(raw_file, spec, frozenset({*spec.labels, *([spec.weight] if spec.weight else [])}))
    file.check(encoder.kinds)
    with _writing(out_split_folder), _pool() as across:
        out_split_folder.mkdir(parents=True, exist_ok=True)
        with _Writer(out_split_folder, spec) as writer:
            for chunk in file.read(encoder.kinds):
                writer.add(encoder.encode(chunk, labels_optional=True, across=across))
    if not writer.rows:
        raise DataError(f"{raw_file}: the file has no rows; there is nothing to score")
    return writer.rows


def _learn(spec: Spec, splitter: Splitter, folder: Path, across: Map) -> None:
    """First pass: `vocab/` and `transform.json` from the training rows."""
    tallies = {name: _Tally(column) for name, column in spec.categories.items()}
    moments = {name: Moments() for name in spec.numbers if standardised(spec.dense[name])}
    learning = [*tallies, *moments]
    kinds = {name: kind for name, kind in column_kinds(spec).items() if name in tallies or name in moments}

    def observe(chunk: Chunk, train: NDArray[np.bool_], name: str) -> None:
        if name in tallies:
            tallies[name].add(raw_categories(chunk, spec, name), train)
        else:
            column = spec.dense[name]
            x, there = numbers(chunk.batch[name], chunk.place, name, column.nan)
            moments[name].add(shaped(x[there & train], column))

    if learning:
        for chunk, codes in splitter.chunks(kinds, ("train",)):
            list(across(partial(observe, chunk, codes == 0), learning))
    (folder / "vocab").mkdir()
    for name in list(tallies):
        tallies.pop(name).vocabulary().save(folder, name)  # popped, so that its memory goes
    learnt = {name: moment.result() for name, moment in moments.items()}
    transform = {"spec": spec.model_dump(mode="json"), "moments": learnt}
    (folder / "transform.json").write_text(json.dumps(transform, indent=1) + "\n")


def _fingerprint(spec: Spec, folder: Path) -> str:
    """A hash of what gives ids and numbers their meaning; the same for the same training rows and spec."""
    learnt = json.loads((folder / "transform.json").read_text())
    meaning = [learnt["moments"], learnt["spec"]["dense"], learnt["spec"]["sparse"]]
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    for name in spec.categories:
        values = load_vocabulary(folder, name).values
        digest.update(name.encode())
        if values is not None:
            for begin in range(0, len(values), GROUP_ROWS):
                digest.update(json.dumps(values[begin : begin + GROUP_ROWS].to_pylist()).encode())
    return digest.hexdigest()[:16]


class _Tally:
    """Training occurrences of one feature's values or buckets."""

    def __init__(self, column: SparseColumn) -> None:
        self._column = column
        self._seen = 0
        self._counter = Counter()
        self._buckets: Counts = np.zeros(1 + (column.hash or 0), np.int64)

    def add(self, found: Categories, train: NDArray[np.bool_]) -> None:
        if not train.all():
            found = Categories(found.texts, found.index[train], found.lengths)
        counts = found.occurrences()
        self._seen += len(found.index) if found.lengths is None else int(counts.sum())
        if self._column.hash:
            there = np.asarray(found.texts.is_valid())
            np.add.at(self._buckets, buckets(found.texts.drop_null(), self._column.hash), counts[there])
        else:
            self._counter.add(found.texts, counts)

    def vocabulary(self) -> Vocabulary:
        if self._column.hash:
            values, counts = None, self._buckets
        else:
            most = None if self._column.max_rows is None else self._column.max_rows - 1
            table = self._counter.ranked(self._column.min_count, most)
            values = table["value"].combine_chunks()
            counts = np.concatenate([np.zeros(1, np.int64), table["count"].to_numpy()])
        counts[0] = self._seen - counts[1:].sum()
        return Vocabulary(values, counts)


def _encode(encoder: Encoder, splitter: Splitter, folder: Path, across: Map) -> dict[str, int]:
    """Second pass: the part files of every split; their rows."""
    writers = {split: _Writer(folder / split, encoder.spec) for split in splitter.wanted}
    for split in writers:
        (folder / split).mkdir()
    for chunk, codes in splitter.chunks(encoder.kinds, splitter.wanted):
        table = encoder.encode(chunk, across=across)
        for code, split in enumerate(SPLITS):
            mine = codes == code
            if mine.all():
                writers[split].add(table)
            elif mine.any():
                writers[split].add(table.filter(pa.array(mine)))
    for split, writer in writers.items():
        writer.close()
        if not writer.rows:
            raise DataError(
                f"{split}: the split has no rows; mend files or split in the spec, or leave it out"
            )
    return {split: writer.rows for split, writer in writers.items()}


class _Writer:
    """Part files of one split: full row groups whatever the size of the tables that come."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.rows = 0
        self._folder = folder
        self._schema = pa.schema([pa.field(n, t, nullable=False) for n, t in encoded_type(spec).items()])
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._groups = 0
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Writer":
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
def _pool() -> Iterator[Map]:
    """`map` over the cores; Arrow and numpy release the lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "prepare") as pool:
        yield pool.map


@contextmanager
def _bar(files: Sequence[RawFile], passes: int, show: bool) -> Iterator[Track]:
    """A progress bar over the bytes of the files, once a pass; silent where stderr is no terminal."""
    sizes = {file.path: file.path.stat().st_size for file in files}
    console = Console(file=sys.stderr)
    columns = (TextColumn("prepare"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as progress:
        task = progress.add_task("prepare", total=passes * sum(sizes.values()))

        def track(file: RawFile, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
            before = progress.tasks[task].completed
            for chunk in chunks:
                yield chunk
                progress.update(task, completed=before + chunk.read * sizes[file.path])
            progress.update(task, completed=before + sizes[file.path])

        yield track


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error


@contextmanager
def _workspace(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all goes well and is removed when not.

    Raises:
        ConfigError: `out` is in the way, another prepare is at it, or the disk refuses.
    """
    out = out.absolute()  # so that "." has a name
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _refuse(out, overwrite)
        folder, old = (out.with_name(f".{out.name}.{what}") for what in ("preparing", "replaced"))
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{out}: another prepare is writing it; wait, or take another --out") from error
        try:
            with _writing(out):
                if old.exists() and not out.exists():
                    os.rename(old, out)  # an overwrite was interrupted between its two renames
                    _refuse(out, overwrite)
                _empty(folder)
                yield folder
                shutil.rmtree(old, ignore_errors=True)
                if out.exists():
                    os.rename(out, old)
                os.rename(folder, out)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _refuse(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "schema.json").is_file():
        raise ConfigError(f"{out}: is there already and no dataset; give another --out")
    if not overwrite:
        raise ConfigError(f"{out}: holds a dataset already; give another --out, or --overwrite to replace it")


def _empty(folder: Path) -> None:
    """Clear what an interrupted run left; the folder itself stays, as it is locked."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
