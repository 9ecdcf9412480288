"""Encoding one batch equals the slow oracle, value by value."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.models.errors import DataError
from sparta.service.data.encode import categories, numbers, transformed
from sparta.service.data.moments import Moments
from sparta.service.data.raw import Place
from sparta.service.data.spec import DenseColumn, SparseColumn
from sparta.service.data.vocab import TEXT, buckets
from tests.service.data import oracle

PLACE = Place(Path("raw.csv"), 10)
MISSING = ("", "NA")
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
ids_of: Callable[[pa.Array], np.ndarray] = lambda texts: buckets(texts, 1000)  # noqa: E731


def expected_id(text: str | None) -> int:
    return 0 if text is None else 1 + oracle.hash_text(text) % 1000


@pytest.mark.parametrize(
    "raw",
    [
        pa.array(["a", "", None, "NA", "b", "a"]),
        pa.array(["a", None, "NA", "b"], pa.large_string()),
        pa.array(["a", None, "NA", "b"]).dictionary_encode(),
        pa.array([3, None, -7], pa.int64()),
        pa.array([2**63 + 5, 0], pa.uint64()),
        pa.array([3.0, -0.0, 0.5, None, math.nan, 1e300], pa.float64()),
        pa.array([3.0, 0.5, 2.0**40], pa.float32()),
        pa.array([None, None], pa.null()),
        pa.array([]),
        pa.array(["x", "a", "", None])[1:],
    ],
    ids=lambda raw: f"{raw.type}-{len(raw)}",
)
def test_categories_are_compared_by_their_text(raw: pa.Array) -> None:
    texts = [oracle.text(value, MISSING) for value in raw.to_pylist()]
    if pa.types.is_float64(raw.type):
        texts[-1] = "1e+300"  # too large to be an integer code
    found = categories(raw, SparseColumn(), MISSING).encode(ids_of)
    assert found.type == pa.int32()
    assert found.to_pylist() == [expected_id(text) for text in texts]


def test_integers_floats_and_texts_of_one_code_are_one_value() -> None:
    for raw in (pa.array([3]), pa.array([3.0]), pa.array(["3"]), pa.array([3], pa.int8())):
        assert categories(raw, SparseColumn(), MISSING).texts.to_pylist() == ["3"]


@given(
    st.lists(st.one_of(st.none(), st.text("ab ,N", max_size=8)), max_size=20),
    st.sampled_from([",", ", ", "a"]),
)
def test_split_texts_are_stripped_and_without_missing_values(raw: list[str | None], separator: str) -> None:
    found = categories(pa.array(raw, pa.string()), SparseColumn(separator=separator), MISSING)
    expected = [
        []
        if text in (None, *MISSING)
        else [part.strip() for part in text.split(separator) if part.strip() not in MISSING]
        for text in raw
    ]
    encoded = found.encode(ids_of)
    assert encoded.type == pa.list_(pa.int32())
    assert encoded.to_pylist() == [[expected_id(part) for part in parts] for parts in expected]
    counts: dict[str, int] = {}
    for text, count in zip(found.texts.to_pylist(), found.occurrences().tolist(), strict=True):
        counts[text] = counts.get(text, 0) + count
    flat = [part for parts in expected for part in parts]
    assert counts == {part: flat.count(part) for part in counts}
    assert set(flat) == set(counts)


@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=4)), max_size=9)
)
def test_list_columns_are_lists_of_values(raw: list[list[int | None] | None]) -> None:
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.float64())):
        found = categories(pa.array(raw, kind), SparseColumn(multi=True), MISSING).encode(ids_of)
        assert found.to_pylist() == [[expected_id(str(v)) for v in row or [] if v is not None] for row in raw]


@given(st.lists(st.one_of(st.none(), finite), max_size=20), st.one_of(st.none(), finite))
@pytest.mark.parametrize("transform", ["none", "log1p", "standardise", "log1p_standardise"])
def test_transforms_equal_the_oracle(transform: str, raw: list[float | None], fill: float | None) -> None:
    column = DenseColumn.model_validate({"transform": transform, "fill": fill})
    x, there = numbers(pa.array(raw, pa.float64()), PLACE, "x")
    found = transformed(x, there, column, (2.0, 8.0))
    assert found.type == pa.float32()
    assert found.null_count == 0
    expected = [oracle.number(value, column, 2.0, 8.0) for value in raw]
    np.testing.assert_allclose(found.to_numpy(), np.array(expected, np.float32), rtol=1e-6)


@given(st.lists(finite, min_size=1, max_size=30), st.randoms())
def test_moments_do_not_depend_on_cuts_and_are_right(values: list[float], random: object) -> None:
    whole, cut = Moments(), Moments()
    x = np.array(values, np.float64)
    whole.add(x)
    for value in x:
        cut.add(np.array([value]))
    assert whole.result() == cut.result()
    mean, deviation = whole.result()
    scale = max(abs(x).max(), 1e-300)
    assert math.isclose(mean, math.fsum(values) / len(values), rel_tol=1e-12, abs_tol=1e-13 * scale)
    expected = statistics.pstdev([value / scale for value in values]) * scale
    assert math.isclose(deviation, expected or 1.0, rel_tol=1e-6, abs_tol=1e-7 * scale) or deviation == 1.0


def test_moments_of_nothing_and_of_a_constant_make_zeros() -> None:
    assert Moments().result() == (0.0, 1.0)
    moments = Moments()
    moments.add(np.full(7, 1e9))
    assert moments.result() == (1e9, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    column = pa.array([1.0, None, bad], pa.float64())
    with pytest.raises(DataError, match=r"raw\.csv: row 13, column 'x': .*nan: missing"):
        numbers(column, PLACE, "x")
    x, there = numbers(column, PLACE, "x", "missing")
    assert x.tolist() == [1.0, 0.0, 0.0]
    assert there.tolist() == [True, False, False]


def test_texts_have_offsets_that_do_not_overflow() -> None:
    assert categories(pa.array(["a"]), SparseColumn(), MISSING).texts.type == TEXT


@given(st.lists(finite, min_size=1), finite, st.floats(1e-45, 1e45))
def test_a_dense_value_is_finite_however_little_its_column_varies(
    values: list[float], mean: float, deviation: float
) -> None:
    column = DenseColumn(transform="standardise", fill=-2.0)
    there = np.arange(len(values)) % 2 == 0
    found = transformed(np.array(values), there, column, (mean, deviation)).to_numpy()
    assert np.isfinite(found).all()
    exact = (np.where(there, values, -2.0) - mean) / deviation
    assert (np.sign(found) == np.sign(exact.astype(np.longdouble).clip(-3e38, 3e38).astype(np.float32))).all()
