"""The first pass of `prepare`: what the training rows teach, which is all that encoding a row needs.

It leaves `vocab/` and `transform.json`; their fingerprint tells datasets apart whose ids mean different things.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparta.service.data.encode import (
    Categories,
    Map,
    column_kinds,
    numbers,
    raw_categories,
    shaped,
    standardised,
)
from sparta.service.data.extend import Parent
from sparta.service.data.moments import Moments
from sparta.service.data.raw import Chunk
from sparta.service.data.spec import SparseColumn, Spec
from sparta.service.data.split import Splitter
from sparta.service.data.vocab import Counter, Counts, Vocabulary, buckets, load_vocabulary

_VALUES = 65_536  # hashed at a time; part of what a fingerprint is


def learn(spec: Spec, splitter: Splitter, folder: Path, across: Map, parent: Parent | None) -> None:
    """Write `vocab/` and `transform.json` from the training rows, and from the dataset that is extended."""
    tallies = {name: _Tally(column) for name, column in spec.categories.items()}
    moments = {name: Moments() for name in spec.numbers if standardised(spec.dense[name]) and parent is None}
    learning = [*tallies, *moments]
    raws = {*map(spec.source, tallies), *moments}
    kinds = {name: kind for name, kind in column_kinds(spec).items() if name in raws}

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
        first = parent.values(name) if parent else None
        tallies.pop(name).vocabulary(first).save(folder, name)  # popped, so that its memory goes
    learnt = {name: moment.result() for name, moment in moments.items()}
    transform = {"spec": spec.model_dump(mode="json"), "moments": parent.moments if parent else learnt}
    (folder / "transform.json").write_text(json.dumps(transform, indent=1) + "\n")


def fingerprint(spec: Spec, folder: Path) -> str:
    """A hash of what gives ids and numbers their meaning; the same for the same training rows and spec."""
    learnt = json.loads((folder / "transform.json").read_text())
    meaning = [learnt["moments"], learnt["spec"]["dense"], learnt["spec"]["sparse"]]
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    for name in spec.categories:
        values = load_vocabulary(folder, name).values
        digest.update(name.encode())
        if values is not None:
            for begin in range(0, len(values), _VALUES):
                digest.update(json.dumps(values[begin : begin + _VALUES].to_pylist()).encode())
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

    def vocabulary(self, first: pa.Array | None) -> Vocabulary:
        """What was counted; the values of `first` come first, whether they were seen or not."""
        if self._column.hash:
            values, counts = None, self._buckets
        else:
            most = None if self._column.max_rows is None else self._column.max_rows - 1
            table = self._counter.ranked(self._column.min_count, most, first)
            values = table["value"].combine_chunks()
            counts = np.concatenate([np.zeros(1, np.int64), table["count"].to_numpy()])
        counts[0] = self._seen - counts[1:].sum()
        return Vocabulary(values, counts)
