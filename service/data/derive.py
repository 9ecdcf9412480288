"""Categories that are made from a value of another kind: buckets of numbers, parts of times."""

# n = rows of a batch, d = its distinct texts

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparta.service.data.spec import SparseColumn


def bucketised(x: NDArray[np.float64], there: NDArray[np.bool_]) -> pa.Array:
    """int(x) up to 2 and int(floor(log(x)^2)) above, null where missing: BARS' categories of Criteo's counts."""
    large = x > 2
    bucket = np.floor(np.log(np.where(large, x, 1.0)) ** 2)
    small = np.trunc(np.maximum(x, -(2.0**62)))
    return pa.array(np.where(large, bucket, small).astype(np.int64), mask=~there)


PARTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "hour": pc.hour,
    "weekday": lambda times: pc.day_of_week(times, week_start=7),
    "weekend": lambda times: pc.is_in(pc.day_of_week(times, week_start=7), value_set=pa.array([0, 6])).cast(
        pa.int64()
    ),
}
"""Of times, a whole number each; a week begins on Sunday."""


def calendar(texts: pa.Array, column: SparseColumn) -> tuple[pa.Array, NDArray[np.bool_]]:
    """(d,) texts of the column's part of the times, and (d,) bool, True where a text is no time.

    Null stays null.
    """
    times = _times(texts, column.time_format)
    bad = np.asarray(texts.is_valid()) & ~np.asarray(times.is_valid())
    parts = PARTS[column.calendar or "hour"](times).cast(texts.type)
    return pc.if_else(times.is_valid(), parts, pa.scalar(None, texts.type)), bad


def _times(texts: pa.Array, written: str | None) -> pa.Array:
    """Null where a text is no time."""
    if written is not None:
        return pc.strptime(texts, format=written, unit="s", error_is_null=True)
    try:
        return texts.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:  # Arrow names no row, so they are tried one by one
        return pa.concat_arrays([_time(texts[at : at + 1]) for at in range(len(texts))])


def _time(text: pa.Array) -> pa.Array:
    try:
        return text.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return pa.nulls(1, pa.timestamp("us"))
