"""What every value of a prepared dataset must obey, in the one place that knows it.

Everything a later layer takes for granted is checked here, once per row group: FBGEMM would silently read
row 0 for an id outside its table, and one NaN ends a run. A message names file, row group, column, value.
"""

# R = rows of the row group, L = ids of a multi-valued column in it

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparta.models.batch import Flaw
from sparta.models.errors import DataError
from sparta.models.schema import Feature

WAY_OUT = "prepare the dataset again with `sparta prepare`"


@dataclass(frozen=True)
class BadRows:
    """Rows of a row group that are to be skipped."""

    rows: NDArray[np.intp]
    """Ascending."""
    why: NDArray[np.intp]
    """Of each, its index in `flaws`."""
    flaws: tuple[Flaw, ...]


class Inspection:
    """The rows of one row group that break a rule: an error, or noted when they are to be skipped.

    A row that breaks several rules is noted for the first. What is returned for a noted row is any value.

    Raises:
        DataError: (every method, unless `skip`) a value breaks a rule.
    """

    def __init__(self, file: str, row_group: int, rows: int, *, skip: bool) -> None:
        self._place = (file, row_group)
        self._rows = rows
        self._skip = skip
        self._flaws: list[Flaw] = []
        self._why: NDArray[np.intp] | None = None  # (R,) index of the row's flaw, -1 = none

    def damaged(self, rule: str) -> None:
        """Note all rows: they cannot be decoded."""
        self._note("*", np.arange(self._rows), lambda _: rule)

    def ids(self, feature: Feature, array: pa.Array) -> NDArray[np.int32]:
        """(R,) a single-valued column."""
        values: NDArray[np.int32] = self._filled(feature.name, array).to_numpy()
        self._check_ids(feature, values, None)
        return values

    def bags(self, feature: Feature, array: pa.ListArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(R + 1,) offsets and (L,) ids of a multi-valued column."""
        self._check_nulls(feature.name, array)
        offsets: NDArray[np.int32] = array.offsets.to_numpy()
        values = array.values[int(offsets[0]) : int(offsets[-1])]  # an array may be a slice of a longer one
        offsets = offsets - offsets[0]
        if values.null_count:
            rows = _rows_of(np.flatnonzero(_is_null(values)), offsets)
            self._note(feature.name, rows, lambda _: "null in a list is no id; leave it out of the list")
            values = pc.fill_null(values, 0)
        ids: NDArray[np.int32] = values.to_numpy()
        self._check_ids(feature, ids, offsets)
        return offsets, ids

    def finite(self, name: str, array: pa.Array) -> NDArray[np.float32]:
        """(R,) a dense column."""
        values: NDArray[np.float32] = self._filled(name, array).to_numpy()
        good = np.isfinite(values)
        if not good.all():
            self._note(name, np.flatnonzero(~good), lambda row: f"{values[row]} is not finite")
        return values

    def labels(self, name: str, array: pa.Array) -> NDArray[np.float32]:
        """(R,) a label column."""
        values: NDArray[np.float32] = self._filled(name, array).to_numpy()
        good = (values == 0) | (values == 1)
        if not good.all():
            self._note(name, np.flatnonzero(~good), lambda row: f"label {values[row]} is neither 0 nor 1")
        return values

    def weights(self, name: str, array: pa.Array) -> NDArray[np.float32]:
        """(R,) the column of sample weights."""
        values = self.finite(name, array)
        bad = values < 0
        if bad.any():
            self._note(name, np.flatnonzero(bad), lambda row: f"weight {values[row]} is negative")
        return values

    def bad(self, order: NDArray[np.intp] | None) -> BadRows | None:
        """The noted rows, where `order` puts them (None = as they stand); None when there are none."""
        if self._why is None:
            return None
        why = self._why if order is None else self._why[order]
        rows = np.flatnonzero(why >= 0)
        return BadRows(rows, why[rows], tuple(self._flaws))

    def _filled(self, name: str, array: pa.Array) -> pa.Array:
        """The array without nulls."""
        return pc.fill_null(array, 0) if self._check_nulls(name, array) else array

    def _check_nulls(self, name: str, array: pa.Array) -> bool:
        if not array.null_count:
            return False
        self._note(name, np.flatnonzero(_is_null(array)), lambda _: "null is no value of a prepared column")
        return True

    def _check_ids(
        self, feature: Feature, values: NDArray[np.int32], offsets: NDArray[np.int32] | None
    ) -> None:
        if not values.size or (values.min() >= 0 and values.max() < feature.rows):
            return
        at = np.flatnonzero((values < 0) | (values >= feature.rows))
        rows = at if offsets is None else _rows_of(at, offsets)

        def rule(row: int) -> str:
            value = values[at[np.searchsorted(rows, row)]]
            return f"id {value} is outside its table of {feature.rows} rows"

        self._note(feature.name, rows, rule)

    def _note(self, column: str, rows: NDArray[np.intp], rule: Callable[[int], str]) -> None:
        """Rows, ascending, that break a rule of a column; `rule` says of one of them which."""
        if self._why is None:
            self._why = np.full(self._rows, -1, np.intp)
        rows = rows[self._why[rows] < 0]
        if not rows.size:
            return
        flaw = Flaw(*self._place, column, int(rows[0]), rule(int(rows[0])))
        if not self._skip:
            raise DataError(f"{flaw}; {WAY_OUT}")
        self._why[rows] = len(self._flaws)
        self._flaws.append(flaw)


def _is_null(array: pa.Array) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _rows_of(at: NDArray[np.intp], offsets: NDArray[np.int32]) -> NDArray[np.intp]:
    """The rows whose lists hold these entries."""
    return np.searchsorted(offsets, at, side="right") - 1
