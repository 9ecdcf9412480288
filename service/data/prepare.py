"""`sparta prepare`: raw files to an encoded dataset folder, in two streaming passes.

The first pass reads the training rows and counts categories and sums numbers; the second encodes every
row. Memory is that of the vocabularies and a few batches. Everything is written to a hidden folder beside
the target, `schema.json` last, and renamed into place: there is a whole dataset or none.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import SPLITS, Feature, Schema
from sparta.service.data.encode import Encoder, Map, column_kinds
from sparta.service.data.extend import Parent
from sparta.service.data.learn import fingerprint, learn
from sparta.service.data.parts import Parts, encode_rows, encoder_of, pool, writing
from sparta.service.data.raw import Chunk, RawFile
from sparta.service.data.spec import Spec
from sparta.service.data.split import Splitter, Track


def prepare(
    spec: Spec, out: Path, *, extend: Path | None = None, progress: bool = True, overwrite: bool = False
) -> Schema:
    """Make the dataset folder `out`.

    `extend` is a dataset whose ids and statistics are kept, new values coming behind; `progress` shows a bar on
    stderr when that is a terminal; `overwrite` replaces an existing dataset.

    Raises:
        ConfigError: `out` holds something already, or cannot be written; the spec does not fit `extend`.
        DataError: a raw file is missing, damaged or breaks a rule; an empty split.
    """
    parent = Parent.load(extend, spec) if extend else None
    files = {split: [RawFile(path, spec) for path in paths] for split, paths in spec.paths().items()}
    everything = [file for group in files.values() for file in group]
    for file in everything:
        file.check(column_kinds(spec))
    passes = 3 if spec.split and spec.split.time else 2
    with _workspace(out, overwrite) as folder, pool() as across, _bar(everything, passes, progress) as track:
        splitter = Splitter(files, spec.split, track)
        learn(spec, splitter, folder, across, parent)
        encoder = Encoder.load(folder)
        rows = _encode(encoder, splitter, folder, across)
        mark = fingerprint(spec, folder)
        schema = Schema(
            dense=spec.numbers,
            sparse=tuple(
                Feature(name=name, rows=encoder.rows[name], multi=column.lists)
                for name, column in spec.categories.items()
            ),
            labels=spec.labels,
            weight=spec.weight,
            splits=rows,
            fingerprint=mark,
            ancestors=parent.ancestors(mark) if parent else (),
            attainable=spec.attainable,
        )
        schema.save(folder)
    return schema


def encode_file(dataset: str | Path, schema: Schema, raw_file: Path, out_split_folder: Path) -> int:
    """Encode a raw file with a dataset's vocabularies into `part-*.parquet`, rows in order; the number of rows.

    Labels may be absent or null and become 0; absent weights become 1.

    Raises:
        DataError: a damaged or empty file, a missing column, a dataset other than the schema's.
    """
    encoder = encoder_of(dataset, schema)
    spec = encoder.spec
    file = RawFile(raw_file, spec, frozenset({*spec.labels, *([spec.weight] if spec.weight else [])}))
    rows = encode_rows(encoder, file, out_split_folder, labels_optional=True)
    if not rows:
        raise DataError(f"{raw_file}: the file has no rows; there is nothing to score")
    return rows


def _encode(encoder: Encoder, splitter: Splitter, folder: Path, across: Map) -> dict[str, int]:
    """Second pass: the part files of every split; their rows."""
    writers = {split: Parts(folder / split, encoder.spec) for split in splitter.wanted}
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
def _workspace(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all goes well and is removed when not.

    Raises:
        ConfigError: `out` is in the way, another prepare is at it, or the disk refuses.
    """
    out = out.absolute()  # so that "." has a name
    with writing(out):
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
            with writing(out):
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
