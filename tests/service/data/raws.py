"""Raw files and specs for the tests of prepare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from sparta.service.data.spec import Spec
from tests.service.data import oracle

COLUMNS = {
    "y": pa.int8(),
    "z": pa.bool_(),
    "w": pa.float32(),
    "x": pa.float64(),
    "n": pa.float64(),
    "word": pa.string(),
    "code": pa.int64(),
    "real": pa.float64(),
    "tags": pa.string(),
    "list": pa.list_(pa.int64()),
}

a_number = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1.0, 5.0]))
a_row = st.fixed_dictionaries(
    {
        "y": st.integers(0, 1),
        "z": st.booleans(),
        "w": st.sampled_from([0.0, 0.5, 2.0]),
        "x": a_number,
        "n": st.one_of(a_number, st.just(float("inf"))),
        "word": st.one_of(st.none(), st.sampled_from(["", "NA", "a", "b", "c", "dé", " a"])),
        "code": st.one_of(st.none(), st.integers(-3, 3)),
        "real": st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, 0.5])),
        "tags": st.one_of(st.none(), st.text("ab, ", max_size=5)),
        "list": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=3)),
    }
)
options = st.one_of(
    st.fixed_dictionaries(
        {"min_count": st.integers(1, 3), "max_rows": st.one_of(st.none(), st.integers(2, 4))}
    ),
    st.fixed_dictionaries({"hash": st.integers(1, 5)}),
)
a_fill = st.one_of(st.none(), st.sampled_from([-2.0, 3.0]))
a_dense = st.fixed_dictionaries(
    {
        "transform": st.sampled_from(["none", "log1p", "standardise", "log1p_standardise", "bucketise"]),
        "fill": a_fill,
        "nan": st.just("missing"),
    }
)


def write(path: Path, rows: Sequence[oracle.Row]) -> str:
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in COLUMNS.items()}
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(dataset: Path, split: str) -> dict[str, list[Any]]:
    parts = sorted((dataset / split).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts]).to_pydict()


def spec_of(files: Any, **changes: Any) -> Spec:
    base: dict[str, Any] = {
        "files": files,
        "labels": ["y", "z"],
        "weight": "w",
        "missing": ["", "NA"],
        "dense": {"x": {}, "n": {"nan": "missing"}},
        "sparse": {"word": {}, "code": {}, "real": {}, "tags": {"separator": ","}, "list": {"multi": True}},
    }
    return Spec.model_validate(base | changes)


def a_raw_row(**changes: Any) -> dict[str, Any]:
    row = {
        "y": 1,
        "z": False,
        "w": 1.0,
        "x": 0.5,
        "n": 1.0,
        "word": "a",
        "code": 1,
        "real": 1.0,
        "tags": "a",
        "list": [1],
    }
    return row | changes


def small(folder: Path, **changes: Any) -> Spec:
    files = {
        split: write(folder / f"{split}.parquet", [a_raw_row(), a_raw_row(y=0)] * 3)
        for split in ("train", "test")
    }
    return spec_of(changes.pop("files", files), **changes)
