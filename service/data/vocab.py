"""Vocabularies: from the texts of a column to the ids of its table, and back.

Id 0 is missing or unseen; id i is the i-th most frequent training value, ties in text order, so the order
does not depend on how the rows were cut into files and batches. A dataset that extends another has the other's
values first, and behind them its new ones in that order. A hashed feature has no vocabulary: its ids are
1 + hash mod buckets. Look-ups compare two independent 64-bit hashes instead of the texts: of a billion values,
one in 10^20 is mistaken for another.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparta.models import storage
from sparta.models.errors import DataError
from sparta.service.data.hashing import mix64

UInts = NDArray[np.uint64]
Ids = NDArray[np.int32]
Counts = NDArray[np.int64]

TEXT = pa.large_string()
"""Type of values here: its offsets do not overflow in a vocabulary of more than 2 GiB."""

_PENDING = 1 << 17  # values that may wait to be merged, at least
_META = b"sparta"
_SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344)  # digits of pi


def hashes(texts: pa.Array, seed: int = _SEEDS[0]) -> UInts:
    """(n,) 64-bit hashes of texts without nulls; part of the dataset format, as hashed ids depend on it.

    h = mix64(seed ^ bytes); then per 8 bytes of UTF-8, little-endian and padded with zeros: h = mix64(h ^ word).
    """
    texts = texts.cast(TEXT)
    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if len(texts) == 0:
        return np.empty(0, np.uint64)
    begin, length = offsets[:-1], np.diff(offsets)
    # Every unaligned 8-byte window of the bytes; the padding lets the last one start at the last byte.
    padded = (
        bytes(8) if data is None else np.concatenate([np.frombuffer(data, np.uint8)[: offsets[-1]], _ZEROS])
    )
    size = int(offsets[-1]) + 1
    windows = np.ndarray((size,), "<u8", buffer=padded, strides=(1,))
    h = mix64(np.uint64(seed) ^ length.astype(np.uint64))
    active = np.flatnonzero(length > 0)
    at = 0
    while active.size:
        word = windows[begin[active] + at]
        spare = 8 * np.clip(8 - (length[active] - at), 0, 7).astype(np.uint64)
        word &= np.uint64(0xFFFFFFFFFFFFFFFF) >> spare
        h[active] = mix64(h[active] ^ word)
        at += 8
        active = active[length[active] > at]
    return h


_ZEROS = np.zeros(8, np.uint8)


def buckets(texts: pa.Array, count: int) -> Ids:
    """Ids 1 .. count of a hashed feature's values."""
    return (hashes(texts) % np.uint64(count)).astype(np.int32) + np.int32(1)


class Counter:
    """Counts of distinct texts, merged as they come; its memory is that of the distinct texts."""

    def __init__(self) -> None:
        self._merged = pa.table({"value": pa.array([], TEXT), "count": pa.array([], pa.int64())})
        self._pending: list[pa.Table] = []
        self._waiting = 0

    def add(self, values: pa.Array, counts: Counts) -> None:
        """Texts (repetitions and nulls are fine) and how often each occurred; 0 and null are left out."""
        part = pa.table({"value": values.cast(TEXT), "count": counts})
        keep = pc.and_(pc.greater(part["count"], 0), pc.is_valid(part["value"]))
        part = part.filter(keep)
        self._pending.append(part)
        self._waiting += len(part)
        # Merging whenever as much waits as is merged keeps the work linear in what came.
        if self._waiting > max(_PENDING, len(self._merged)):
            self._merge()

    def _merge(self) -> None:
        both = pa.concat_tables([self._merged, *self._pending])
        grouped = both.group_by("value", use_threads=False).aggregate([("count", "sum")])
        self._merged = grouped.rename_columns({"count_sum": "count"}).select(["value", "count"])
        self._pending, self._waiting = [], 0

    def ranked(self, min_count: int, max_values: int | None, first: pa.Array | None = None) -> pa.Table:
        """`value`, `count` of the values kept: all of `first` as they stand, then the most frequent others.

        The others occur at least `min_count` times, ties are in text order, and they fill up to `max_values`.
        """
        self._merge()
        table, kept = self._merged, None
        if first is not None:
            # As rows will be encoded: a value that the look-up takes for one of `first` is that one.
            ids = Lookup(first)(table["value"].combine_chunks())
            counts = np.zeros(1 + len(first), np.int64)
            counts[ids] = table["count"].to_numpy()
            kept = pa.table({"value": first.cast(TEXT), "count": counts[1:]})
            table = table.filter(pa.array(ids == 0))
            max_values = None if max_values is None else max(0, max_values - len(first))
        if min_count > 1:
            table = table.filter(pc.greater_equal(table["count"], min_count))
        order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("value", "ascending")])
        others = table.take(order[:max_values] if max_values is not None else order)
        return (others if kept is None else pa.concat_tables([kept, others])).combine_chunks()


class Lookup:
    """Texts to ids, as a hash table of sorted hashes that is built once and probed by whole arrays."""

    def __init__(self, values: pa.Array) -> None:
        first, second = (hashes(values, seed) for seed in _SEEDS)
        order = np.argsort(first, kind="stable")
        self._first, self._second = first[order], second[order]
        self._ids = (order + 1).astype(np.int32)
        # About one value a bucket; a bucket is the values with the same leading bits.
        bits = max(1, len(order).bit_length())
        self._shift = np.uint64(64 - bits)
        starts = np.searchsorted(self._first >> self._shift, np.arange((1 << bits) + 1, dtype=np.uint64))
        self._starts = starts.astype(np.int64)

    def __call__(self, texts: pa.Array) -> Ids:
        """(n,) ids; 0 for texts that are not in the vocabulary."""
        first, second = (hashes(texts, seed) for seed in _SEEDS)
        bucket = (first >> self._shift).astype(np.int64)
        at, end = self._starts[bucket], self._starts[bucket + 1]
        ids = np.zeros(len(first), np.int32)
        active = np.flatnonzero(at < end)
        while active.size:
            p = at[active]
            hit = (self._first[p] == first[active]) & (self._second[p] == second[active])
            ids[active[hit]] = self._ids[p[hit]]
            at[active] += 1
            active = active[~hit & (at[active] < end[active])]
        return ids


@dataclass(frozen=True)
class Vocabulary:
    """What `vocab/<feature>.parquet` holds: row i of it is id i + 1."""

    values: pa.Array | None
    """Texts; None for a hashed feature."""
    counts: Counts
    """(rows,) training occurrences of every id, id 0 (missing or left out) included."""

    @property
    def rows(self) -> int:
        """Rows of the table, id 0 included."""
        return len(self.counts)

    def save(self, dataset: Path, feature: str) -> None:
        columns: dict[str, Any] = {} if self.values is None else {"value": self.values}
        table = pa.table(columns | {"count": self.counts[1:]})
        meta = {_META: json.dumps({"zero": int(self.counts[0])}).encode()}
        path = dataset.joinpath(*_place(feature))
        pq.write_table(table.replace_schema_metadata(meta), path, compression="zstd")


def load_vocabulary(dataset: str | Path, feature: str) -> Vocabulary:
    """Values and training counts of one feature of a prepared dataset, in a folder or at a URL.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: a URL whose kind is unknown here.
    """
    path = storage.join(dataset, *_place(feature))
    try:
        with storage.opened(path) as source:
            table = pq.read_table(source)
        zero = json.loads(table.schema.metadata[_META])["zero"]
        counts = table["count"].to_numpy()
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: no readable vocabulary; run `sparta prepare` again") from error
    values = table["value"].combine_chunks() if "value" in table.column_names else None
    return Vocabulary(values, np.concatenate([np.array([zero], np.int64), counts]))


def _place(feature: str) -> tuple[str, str]:
    return "vocab", f"{feature}.parquet"
