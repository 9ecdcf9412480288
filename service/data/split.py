"""Which split a raw row belongs to: by its file, at random, or by time. Never by how it was read.

A random split hashes (seed, row number over all the files), so it is the same however the rows are cut
into files and batches. A time split needs two quantiles of the time column: one pass over that column
keeps the rows with the smallest hashes, which is all of them up to SAMPLE rows and an even sample beyond.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparta.models.errors import DataError
from sparta.models.schema import SPLITS
from sparta.service.data.hashing import mix64
from sparta.service.data.raw import Chunk, Kind, RawFile
from sparta.service.data.spec import ALL, Fractions

SAMPLE = 1 << 20
"""Rows the quantiles of a time split are taken from; beyond it fractions are right to about 0.001."""

Files = Mapping[str, Sequence[RawFile]]
Track = Callable[[RawFile, Iterator[Chunk]], Iterator[Chunk]]
"""Passes the chunks of a file on and reports how far they got."""
Codes = NDArray[np.int8]
"""(n,) index in SPLITS of every row."""


class Splitter:
    """Reads the files and says of every row which split it belongs to."""

    def __init__(self, files: Files, fractions: Fractions | None, track: Track) -> None:
        self._files, self._fractions, self._track = files, fractions, track
        if fractions and fractions.time:
            self._cuts = self._quantiles(fractions, fractions.time)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The splits that the dataset is to have."""
        if self._fractions is None:
            return tuple(split for split in SPLITS if split in self._files)
        shares = {"train": 1.0, "valid": self._fractions.valid, "test": self._fractions.test}
        return tuple(split for split in SPLITS if shares[split] > 0)

    def chunks(self, kinds: Mapping[str, Kind], splits: Sequence[str]) -> Iterator[tuple[Chunk, Codes]]:
        """Every row of `splits`, and of the files they share with others, in order."""
        if self._fractions is None:
            for code, split in enumerate(SPLITS):
                for file in self._files.get(split, ()) if split in splits else ():
                    for chunk in self._track(file, file.read(kinds)):
                        yield chunk, np.full(len(chunk.batch), code, np.int8)
            return
        time = self._fractions.time
        first = 0
        for file in self._files[ALL]:
            columns: dict[str, Kind] = {time: "time"} if time else {}
            for chunk in self._track(file, file.read(columns | dict(kinds))):
                if time:
                    codes = np.searchsorted(self._cuts, _times(chunk, time), side="right")
                else:
                    codes = self._random(self._fractions, first, len(chunk.batch))
                yield chunk, codes.astype(np.int8)
                first += len(chunk.batch)

    @staticmethod
    def _random(fractions: Fractions, first: int, rows: int) -> NDArray[np.intp]:
        uniform = _hash(fractions.seed, first, rows) * 2.0**-64
        train = 1 - fractions.valid - fractions.test
        return np.searchsorted(np.array([train, 1 - fractions.test]), uniform, side="right")

    def _quantiles(self, fractions: Fractions, time: str) -> NDArray[np.float64]:
        """The times at which valid and test begin."""
        keys, times = np.empty(0, np.uint64), np.empty(0)
        first = 0
        for file in self._files[ALL]:
            for chunk in self._track(file, file.read({time: "time"})):
                rows = len(chunk.batch)
                keys = np.concatenate([keys, _hash(fractions.seed, first, rows)])
                times = np.concatenate([times, _times(chunk, time)])
                if len(keys) > SAMPLE:
                    kept = np.argpartition(keys, SAMPLE)[:SAMPLE]
                    keys, times = keys[kept], times[kept]
                first += rows
        times = np.sort(times)
        test = round(len(times) * fractions.test)
        valid = round(len(times) * fractions.valid)
        begin = np.append(times, np.inf)
        return np.array([begin[len(times) - test - valid], begin[len(times) - test]])


def _hash(seed: int, first: int, rows: int) -> NDArray[np.uint64]:
    """(rows,) distinct 64-bit hashes of the row numbers from `first` on."""
    key = mix64(np.array([seed], np.uint64))
    return mix64(np.arange(first, first + rows, dtype=np.uint64) ^ key)


def _times(chunk: Chunk, name: str) -> NDArray[np.float64]:
    """(n,) numbers in the order of the times: numbers as they are, dates and times as microseconds."""
    column = chunk.batch[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parsed(chunk, name, column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    times: NDArray[np.float64] = (
        column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    )
    missing = np.isnan(times)
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(f"{chunk.place(row, name)}: no time, so the row has no split; mend or drop it")
    return times


def _parsed(chunk: Chunk, name: str, column: pa.Array) -> pa.Array:
    """Texts as numbers or else as ISO times; a column is all one or all the other."""
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    for kind in (pa.float64(), pa.timestamp("us")):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    raise DataError(
        f"{chunk.place.file}: column {name!r} holds neither only numbers nor only times such as 2026-01-31 12:00:00"
    )
