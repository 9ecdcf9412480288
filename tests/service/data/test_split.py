"""Splits: a function of the seed and the row, never of how the rows were cut; times never straddle a cut."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from sparta.models.errors import DataError
from sparta.service.data import raw, split
from sparta.service.data.raw import Chunk, RawFile
from sparta.service.data.spec import Spec
from sparta.service.data.split import Splitter


def track(file: RawFile, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    return chunks


def codes(
    folder: Path, columns: dict[str, Any], fractions: dict[str, Any], files: int = 1
) -> NDArray[np.int8]:
    """Split of every row, 0 = train, 1 = valid, 2 = test."""
    table = pa.table({"y": np.zeros(len(next(iter(columns.values()))))} | columns)
    cuts = np.linspace(0, len(table), files + 1).astype(int)
    paths = []
    for i, (begin, end) in enumerate(pairwise(cuts)):
        paths.append(folder / f"{files}-{i}.parquet")
        pq.write_table(table.slice(begin, end - begin), paths[-1])
    spec = Spec.model_validate({"files": "unused", "split": fractions, "labels": "y", "sparse": ["c"]})
    splitter = Splitter({"all": [RawFile(path, spec) for path in paths]}, spec.split, track)
    found = splitter.chunks({"y": "number"}, splitter.wanted)
    return np.concatenate([rows for _, rows in found])


def test_random_split_depends_on_seed_and_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"c": np.arange(20_000)}
    fractions = {"valid": 0.2, "test": 0.1, "seed": 3}
    first = codes(tmp_path, columns, fractions)
    np.testing.assert_allclose(np.bincount(first) / 20_000, [0.7, 0.2, 0.1], atol=0.02)
    monkeypatch.setattr(raw, "BATCH_ROWS", 999)
    np.testing.assert_array_equal(codes(tmp_path, columns, fractions, files=3), first)
    np.testing.assert_array_equal(codes(tmp_path, {"c": np.arange(500)}, fractions), first[:500])
    assert (codes(tmp_path, columns, fractions | {"seed": 4}) != first).mean() > 0.3


@pytest.mark.parametrize(
    "times",
    [
        lambda t: t,
        lambda t: t / 7,
        lambda t: pa.array(t, pa.timestamp("s")),
        lambda t: pa.array(t * 1000, pa.timestamp("ns", "UTC")),
        lambda t: pa.array(t.astype(np.int32), pa.date32()),
        lambda t: pa.array([str(x) for x in t]),
        lambda t: pa.array([f"2026-01-31 12:{x // 60:02d}:{x % 60:02d}" for x in t]),
    ],
)
def test_time_split_is_a_sort(tmp_path: Path, times: Any) -> None:
    t = np.random.default_rng(1).permutation(1000)
    found = codes(tmp_path, {"t": times(t)}, {"valid": 0.1, "test": 0.2, "time": "t"}, files=3)
    np.testing.assert_array_equal(found, np.where(t >= 800, 2, np.where(t >= 700, 1, 0)))


def test_equal_times_stay_together(tmp_path: Path) -> None:
    t = np.repeat(np.arange(10), 7)
    found = codes(tmp_path, {"t": t}, {"test": 0.25, "time": "t"})
    assert {(time, code) for time, code in zip(t.tolist(), found.tolist(), strict=True) if code} == {
        (8, 2),
        (9, 2),
        (7, 2),
    }


def test_sampled_quantiles_are_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SAMPLE", 2000)
    monkeypatch.setattr(raw, "BATCH_ROWS", 700)
    t = np.random.default_rng(1).permutation(20_000)
    once = codes(tmp_path, {"t": t}, {"valid": 0.1, "test": 0.1, "time": "t"})
    np.testing.assert_allclose(np.bincount(once) / len(t), [0.8, 0.1, 0.1], atol=0.02)
    again = codes(tmp_path, {"t": t}, {"valid": 0.1, "test": 0.1, "time": "t"}, files=4)
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pa.array([1.0, None]), "row 2, column 't': no time"),
        (pa.array(["1", ""]), "row 2, column 't': no time"),
        (pa.array(["1", "yesterday"]), "column 't' holds neither only numbers nor only times"),
        (pa.array([[1], [2]]), "column 't' holds list"),
    ],
)
def test_rows_without_a_time_are_refused(tmp_path: Path, times: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        codes(tmp_path, {"t": times}, {"test": 0.5, "time": "t"})
