"""Vocabularies: counting equals collections.Counter, look-ups equal a dict, hashing equals its definition."""

from collections import Counter as PythonCounter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.errors import DataError
from sparta.service.data import vocab
from sparta.service.data.vocab import TEXT, Counter, Lookup, Vocabulary, buckets, hashes, load_vocabulary
from tests.service.data.oracle import hash_text

texts = st.lists(st.text(max_size=20), max_size=40)


@given(texts, st.integers(0, 5))
def test_hash_is_its_definition_wherever_the_array_begins(values: list[str], skip: int) -> None:
    array = pa.array(values, TEXT)[skip:]
    assert hashes(array).tolist() == [hash_text(value) for value in values[skip:]]


@given(texts, st.integers(1, 1000))
def test_buckets_are_hash_modulo_count(values: list[str], count: int) -> None:
    assert buckets(pa.array(values, pa.string()), count).tolist() == [
        1 + hash_text(v) % count for v in values
    ]


@given(st.lists(st.text(max_size=9), unique=True, max_size=60), texts)
def test_lookup_is_a_dict(values: list[str], queries: list[str]) -> None:
    ids = {value: i for i, value in enumerate(values, start=1)}
    queries = [*queries, *values]
    assert Lookup(pa.array(values, TEXT))(pa.array(queries, TEXT)).tolist() == [
        ids.get(q, 0) for q in queries
    ]


def test_large_lookup_finds_every_value_and_nothing_else() -> None:
    values = pa.array([f"{i * 2654435761 % 2**32:08x}" for i in range(50_000)], TEXT)
    lookup = Lookup(values)
    np.testing.assert_array_equal(lookup(values), np.arange(1, 50_001))
    assert not lookup(pa.array([f"other {i}" for i in range(1000)], TEXT)).any()


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh")), max_size=6),
    st.integers(1, 4),
    st.integers(1, 6),
    st.one_of(st.none(), st.lists(st.sampled_from("cdefghij"), unique=True)),
)
def test_counter_ranks_as_a_python_counter_however_the_values_come(
    parts: list[list[str]], min_count: int, most: int, first: list[str] | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab, "_PENDING", 2)
        counter = Counter()
        for part in parts:
            counter.add(pa.array(part, pa.string()), np.ones(len(part), np.int64))
        table = counter.ranked(min_count, most, None if first is None else pa.array(first, TEXT))
    expected = PythonCounter(value for part in parts for value in part)
    old = first or []
    ranked = sorted(expected.items(), key=lambda item: (-item[1], item[0]))
    others = [item for item in ranked if item[1] >= min_count and item[0] not in old]
    kept = [(value, expected[value]) for value in old] + others[: max(0, most - len(old))]
    assert list(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True)) == kept


def test_counter_leaves_nulls_and_zero_counts_out() -> None:
    counter = Counter()
    counter.add(pa.array(["a", None, "b"]), np.array([2, 5, 0]))
    assert counter.ranked(1, None).to_pylist() == [{"value": "a", "count": 2}]


@pytest.mark.parametrize("values", [pa.array(["b", "a"], TEXT), None])
def test_saved_vocabulary_reads_back(tmp_path: Path, values: pa.Array | None) -> None:
    (tmp_path / "vocab").mkdir()
    Vocabulary(values, np.array([7, 3, 2])).save(tmp_path, "c")
    again = load_vocabulary(tmp_path, "c")
    assert again.values == values
    assert again.rows == 3
    assert again.counts.tolist() == [7, 3, 2]


def test_missing_vocabulary_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c\.parquet: no readable vocabulary"):
        load_vocabulary(tmp_path, "c")
