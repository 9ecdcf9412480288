"""From raw record batches to encoded ones: ids for categories, float32 for numbers, 0 and 1 for labels.

`prepare` and `predict` share this code, so a row is encoded alike in both. Whatever is done to a category
(text form, missing, splitting, hashing, look-up) is done to the distinct values of a batch and then spread
over its rows.
"""

# n = rows of a batch, d = its distinct values, e = elements of their lists

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from sparta.models import storage
from sparta.models.errors import DataError
from sparta.service.data.derive import bucketised, calendar
from sparta.service.data.raw import Chunk, Kind, Place, is_list
from sparta.service.data.spec import DenseColumn, SparseColumn, Spec
from sparta.service.data.vocab import TEXT, Counts, Ids, Lookup, buckets, load_vocabulary

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or that of a thread pool."""

_LARGEST = float(np.finfo(np.float32).max)


def numbers(column: pa.Array, place: Place, name: str, nan: str = "error") -> tuple[Floats, Bools]:
    """(n,) values, 0 where missing, and (n,) bool, True where there is one.

    Raises:
        DataError: NaN, infinite, or too large for float32, and not to be taken as missing.
    """
    there = ~np.asarray(column.is_null())
    x = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy(zero_copy_only=False)
    bad = ~(np.abs(x) <= _LARGEST)
    if bad.any():
        if nan != "missing":
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{place(row, name)}: {x[row]} is no finite float32; mend it or set dense.{name}.nan: missing"
            )
        there &= ~bad
        x = np.where(bad, 0.0, x)
    return x, there


@dataclass(frozen=True)
class Categories:
    """The categories of a batch: n rows refer to d distinct values, or lists of them."""

    texts: pa.Array
    """(d,) texts, null = missing; with lists the (e,) elements of all d lists."""
    index: NDArray[np.int64]
    """(n,) in [0, d), -1 = missing."""
    lengths: NDArray[np.int64] | None = None
    """(d,) elements of each list, none of them missing; None without lists."""

    def occurrences(self) -> Counts:
        """How often each of `texts` occurs in the rows."""
        lists = len(self.texts) if self.lengths is None else len(self.lengths)
        rows = np.bincount(self.index[self.index >= 0], minlength=lists)
        return rows if self.lengths is None else np.repeat(rows, self.lengths)

    def encode(self, ids_of: Callable[[pa.Array], Ids]) -> pa.Array:
        """(n,) int32, or list<int32>; `ids_of` numbers texts without nulls."""
        if self.lengths is None:
            ids = ids_of(self.texts.fill_null(""))
            ids[np.asarray(self.texts.is_null())] = 0
            return pa.array(np.append(ids, np.int32(0))[self.index])  # index -1 takes the appended 0
        elements = self.texts.dictionary_encode()
        ids = ids_of(elements.dictionary)[elements.indices.to_numpy()]
        offsets = np.concatenate([[0], np.cumsum(self.lengths), [self.lengths.sum()]])  # an empty list more
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids, pa.int32()))
        return lists.take(pa.array(np.where(self.index < 0, len(self.lengths), self.index)))


def categories(column: pa.Array, options: SparseColumn, missing: Iterable[str]) -> Categories:
    """Read a raw column as the spec says."""
    nothing = tuple(missing)
    if is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        texts, index = _distinct(column.flatten(), nothing)
        elements = texts.take(pa.array(index, mask=index < 0))
        return _lists(elements, lengths, np.arange(len(column)))
    texts, index = _distinct(column, nothing)
    if not options.lists:
        return Categories(texts, index)
    split = pc.split_pattern(texts, options.separator or ",")
    elements = pc.utf8_trim_whitespace(split.flatten())
    elements = _without(elements, (*nothing, ""))
    return _lists(elements, pc.list_value_length(split).fill_null(0).to_numpy(), index)


def _lists(elements: pa.Array, lengths: Any, index: NDArray[np.int64]) -> Categories:
    """Lists whose missing elements are dropped."""
    there = np.asarray(elements.is_valid())
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return Categories(elements.drop_null(), index, np.bincount(owner[there], minlength=len(lengths)))


def _distinct(column: pa.Array, nothing: Iterable[str]) -> tuple[pa.Array, NDArray[np.int64]]:
    """(d,) texts, null where missing, and the (n,) index of each row in them, -1 for null."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    index = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return _without(_text(encoded.dictionary), nothing), index


def _text(values: pa.Array) -> pa.Array:
    """The text form of values: 3 and 3.0 are "3", NaN is null."""
    if not pa.types.is_floating(values.type):
        return values.cast(TEXT)
    x = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    whole = (np.abs(x) < 2.0**63) & (np.trunc(x) == x)
    integers = pa.array(np.where(whole, x, 0).astype(np.int64)).cast(TEXT)
    others = pc.if_else(pa.array(np.isnan(x)), pa.scalar(None, TEXT), values.cast(TEXT))
    return pc.if_else(pa.array(whole), integers, others)


def _without(texts: pa.Array, nothing: Iterable[str]) -> pa.Array:
    """The texts, null where they are one of `nothing`."""
    for text in nothing:
        empty = pc.equal(texts, pa.scalar(text, TEXT))
        if pc.any(empty).as_py():
            texts = pc.if_else(empty, pa.scalar(None, TEXT), texts)
    return texts


def standardised(column: DenseColumn) -> bool:
    """Whether the column's mean and deviation are to be learnt."""
    return column.transform in ("standardise", "log1p_standardise")


def shaped(x: Floats, column: DenseColumn) -> Floats:
    """The values whose mean and deviation count: after the logarithm, where there is one."""
    if column.transform in ("log1p", "log1p_standardise"):
        return np.copysign(np.log1p(np.abs(x)), x)
    return x


def transformed(x: Floats, there: Bools, column: DenseColumn, moments: tuple[float, float]) -> pa.Array:
    """(n,) float32 without nulls; what is beyond its range, as of a column that hardly varies, is its largest."""
    if column.fill is not None:
        x, there = np.where(there, x, column.fill), np.ones_like(there)
    x = shaped(x, column)
    if standardised(column):
        mean, deviation = moments
        x = (x - mean) / deviation
    return pa.array(np.where(there, x, 0.0).clip(-_LARGEST, _LARGEST).astype(np.float32))


class Encoder:
    """What `prepare` learnt from the training rows, applied to any raw rows."""

    def __init__(
        self,
        spec: Spec,
        moments: Mapping[str, tuple[float, float]],
        ids_of: Mapping[str, Callable[[pa.Array], Ids]],
        rows: Mapping[str, int],
    ) -> None:
        self.spec, self.moments, self.ids_of = spec, moments, ids_of
        self.rows = rows
        """Rows of every feature's table, id 0 included."""

    @classmethod
    def load(cls, dataset: str | Path) -> "Encoder":
        """The encoder of a prepared dataset.

        Raises:
            DataError: transform.json or a vocabulary is missing or damaged.
        """
        spec, moments = load_transform(dataset)
        ids_of: dict[str, Callable[[pa.Array], Ids]] = {}
        rows = {}
        for name, column in spec.categories.items():
            vocabulary = load_vocabulary(dataset, name)
            rows[name] = vocabulary.rows
            if column.hash:
                ids_of[name] = partial(buckets, count=column.hash)
            else:
                ids_of[name] = Lookup(vocabulary.values)
        return cls(spec, moments, ids_of, rows)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The raw columns it reads."""
        return column_kinds(self.spec)

    def encode(self, chunk: Chunk, *, labels_optional: bool = False, across: Map = map) -> pa.Table:
        """The chunk's rows in order, in the columns of the dataset.

        With `labels_optional` absent or null labels become 0 and absent weights 1.

        Raises:
            DataError: a label other than 0 and 1, a negative weight, NaN in a number.
        """
        names = encoded_type(self.spec)
        columns = across(partial(self._column, chunk, labels_optional), names)
        return pa.table(dict(zip(names, columns, strict=True)))

    def _column(self, chunk: Chunk, labels_optional: bool, name: str) -> pa.Array:
        spec, place = self.spec, chunk.place
        if name in self.ids_of:
            return raw_categories(chunk, spec, name).encode(self.ids_of[name])
        if name in spec.dense:
            x, there = numbers(chunk.batch[name], place, name, spec.dense[name].nan)
            return transformed(x, there, spec.dense[name], self.moments.get(name, (0.0, 1.0)))
        if labels_optional and name not in chunk.batch.schema.names:
            return pa.array(np.full(len(chunk.batch), float(name == spec.weight), np.float32))
        column = chunk.batch[name]
        if name in spec.labels:
            return _checked(
                column,
                lambda x: (x == 0) | (x == 1),
                0.0 if labels_optional else None,
                lambda row, value: (
                    f"{place(row, name)}: label is {value}; labels are 0 or 1, mend or drop the row"
                ),
            )
        return _checked(
            column,
            lambda x: (x >= 0) & (x <= _LARGEST),
            1.0 if labels_optional else None,
            lambda row, value: f"{place(row, name)}: weight is {value}; weights are numbers from 0 on",
        )


def load_transform(dataset: str | Path) -> tuple[Spec, dict[str, tuple[float, float]]]:
    """A dataset's spec, and mean and deviation of its standardised columns.

    Raises:
        DataError: transform.json is missing or damaged.
    """
    path = storage.join(dataset, "transform.json")
    try:
        raw = json.loads(storage.read_bytes(path))
        moments = {name: (float(mean), float(std)) for name, (mean, std) in raw["moments"].items()}
        return Spec.model_validate(raw["spec"]), moments
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise DataError(f"{path}: not readable; run `sparta prepare` again") from error


def _checked(
    column: pa.Array,
    rule: Callable[[Floats], Bools],
    instead: float | None,
    complaint: Callable[[int, Any], str],
) -> pa.Array:
    """(n,) float32 that obey the rule; null becomes `instead`, or breaks the rule when that is None."""
    filler = np.nan if instead is None else instead
    x = column.cast(pa.float64(), safe=False).fill_null(filler).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~rule(x))
    if bad.size:
        value = column[int(bad[0])].as_py()
        raise DataError(complaint(int(bad[0]), "missing" if value is None else value))
    return pa.array(x.astype(np.float32))


def column_kinds(spec: Spec) -> dict[str, Kind]:
    """Every raw column of the spec and how it is read."""
    kinds: dict[str, Kind] = dict.fromkeys(spec.dense, "number")
    kinds |= dict.fromkeys(map(spec.source, spec.sparse), "category")
    kinds |= dict.fromkeys((*spec.labels, *([spec.weight] if spec.weight else [])), "number")
    return kinds


def encoded_type(spec: Spec) -> dict[str, pa.DataType]:
    """The columns of the dataset, in order."""
    ids = {name: pa.list_(pa.int32()) if c.lists else pa.int32() for name, c in spec.categories.items()}
    targets = (*spec.labels, *([spec.weight] if spec.weight else []))
    return dict.fromkeys(spec.numbers, pa.float32()) | ids | dict.fromkeys(targets, pa.float32())


def raw_categories(chunk: Chunk, spec: Spec, name: str) -> Categories:
    """The categories of one feature, those of bucketised numbers and of times included.

    Raises:
        DataError: a text that is no time.
    """
    raw, options = spec.source(name), spec.categories[name]
    column = chunk.batch[raw]
    if name in spec.dense:
        x, there = numbers(column, chunk.place, name, spec.dense[name].nan)
        fill = spec.dense[name].fill
        if fill is not None:
            x, there = np.where(there, x, fill), np.ones_like(there)
        column = bucketised(x, there)
    found = categories(column, options, spec.missing)
    if options.calendar is None:
        return found
    parts, bad = calendar(found.texts, options)
    if bad.any():
        row = int(np.argmax(np.append(bad, False)[found.index]))
        raise DataError(
            f"{chunk.place(row, raw)}: {column[row].as_py()!r} is no time; mend it or say sparse.{name}.time_format"
        )
    return replace(found, texts=parts)
