"""Buckets of numbers and parts of times equal the slow oracle, value by value."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparta.models.errors import ConfigError, DataError
from sparta.service.data.derive import PARTS, bucketised, calendar
from sparta.service.data.encode import raw_categories
from sparta.service.data.raw import Chunk, Place
from sparta.service.data.spec import DenseColumn, SparseColumn, Spec
from sparta.service.data.vocab import TEXT
from tests.service.data import oracle
from tests.service.data.raws import spec_of

finite = st.floats(-1e9, allow_nan=False, allow_infinity=False, width=32)
a_time = st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1))
FORMATS = (None, "%y%m%d%H", "%Y-%m-%dT%H:%M", "%d/%m/%Y")


def test_buckets_of_counts_that_one_can_compute_by_hand() -> None:
    counts = [-2, 0, 1, 2, 3, 4, 7, 8, 20, 1382]
    x = np.array(counts, np.float64)
    expected = [-2, 0, 1, 2, 1, 1, 3, 4, 8, 52]  # ln(3)^2 = 1.2, ln(20)^2 = 8.97
    assert bucketised(x, np.ones(len(x), bool)).to_pylist() == expected


@given(st.lists(st.one_of(st.none(), finite, st.integers(-5, 100_000).map(float)), max_size=20))
def test_buckets_are_those_of_bars(raw: list[float | None]) -> None:
    x = np.array([value or 0.0 for value in raw], np.float64)
    there = np.array([value is not None for value in raw], bool)
    assert bucketised(x, there).to_pylist() == [oracle.bucket(value, DenseColumn()) for value in raw]


@given(
    st.lists(st.one_of(st.none(), a_time), max_size=12),
    st.sampled_from(FORMATS),
    st.sampled_from(sorted(PARTS)),
)
@example(
    [datetime(2014, 10, 26, 23), datetime(2014, 10, 25), datetime(2014, 10, 24, 12)], "%y%m%d%H", "weekend"
)
def test_parts_of_times_are_the_calendars(
    times: list[datetime | None], written: str | None, part: Any
) -> None:
    column = SparseColumn(calendar=part, time_format=written)
    texts = [time and (time.strftime(written) if written else str(time)) for time in times]
    found, bad = calendar(pa.array(texts, TEXT), column)
    assert not bad.any()
    assert found.to_pylist() == [oracle.calendar(text, column) for text in texts]


@pytest.mark.parametrize("written", [None, "%Y-%m-%d"])
def test_a_text_that_is_no_time_is_told_apart_from_a_missing_one(written: str | None) -> None:
    texts = pa.array(["2026-01-31", None, "31.1.2026", "2026-13-01"], TEXT)
    found, bad = calendar(texts, SparseColumn(calendar="weekday", time_format=written))
    assert found.to_pylist() == ["6", None, None, None]
    assert bad.tolist() == [False, False, True, True]


def features(**columns: dict[str, Any]) -> Spec:
    return spec_of({"train": "a"}, sparse=columns, dense={})


def test_several_features_come_from_one_column() -> None:
    written = {"source": "at", "time_format": "%y%m%d%H"}
    spec = features(
        at={},
        hour=written | {"calendar": "hour"},
        weekend=written | {"calendar": "weekend"},
    )
    raw = pa.record_batch({"at": pa.array(["14102523", "14102400", None, "", "14102523"])})
    chunk = Chunk(Place(Path("a.csv")), raw, 1.0)
    read = {name: raw_categories(chunk, spec, name) for name in spec.sparse}
    rows = {name: [one.texts[i].as_py() if i >= 0 else None for i in one.index] for name, one in read.items()}
    assert rows["at"] == ["14102523", "14102400", None, None, "14102523"]
    assert rows["hour"] == ["23", "0", None, None, "23"]
    assert rows["weekend"] == ["1", "0", None, None, "1"]


def test_a_bad_time_is_one_line_that_names_the_row() -> None:
    spec = features(hour={"source": "at", "calendar": "hour"})
    raw = pa.record_batch({"at": pa.array(["2026-01-31 05:00:00", "", "soon", "2026-01-31 05:00:00"])})
    with pytest.raises(
        DataError, match=r"a\.csv: row 13, column 'at': 'soon' is no time; .*sparse\.hour\.time_format"
    ):
        raw_categories(Chunk(Place(Path("a.csv"), 10), raw, 1.0), spec, "hour")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"time_format": "%y"}, "add calendar or drop it"),
        ({"calendar": "hour", "multi": True}, "one time a sample; drop multi"),
        ({"calendar": "hour", "separator": ","}, "one time a sample; drop multi"),
        ({"calendar": "month"}, "hour"),
        ({"source": "y"}, "'y' is read as a number; name another column"),
    ],
)
def test_options_that_say_nothing_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        features(hour=columns)
