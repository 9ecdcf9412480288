"""Small prepared datasets for tests, written with pyarrow alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from sparta.models.schema import Feature, Schema

MIXED = Schema(
    dense=("I1", "I2"),
    sparse=(
        Feature(name="C1", rows=1000),
        Feature(name="C2", rows=9),
        Feature(name="M", rows=50, multi=True),
        Feature(name="C3", rows=300),
    ),
    labels=("y",),
    weight="w",
    splits={},
)
"""Every kind of column; single-valued features on both sides of a multi-valued one."""


def arrow_type(schema: Schema, column: str) -> pa.DataType:
    """The type that a dataset's column must have."""
    for feature in schema.sparse:
        if feature.name == column:
            return pa.list_(pa.int32()) if feature.multi else pa.int32()
    return pa.float32()


def columns(schema: Schema) -> list[str]:
    names = [*(feature.name for feature in schema.sparse), *schema.dense, *schema.labels]
    return [*names, schema.weight] if schema.weight else names


def write_dataset(
    folder: Path, schema: Schema, tables: Mapping[str, pa.Table], row_group: int = 64, files: int = 1
) -> Schema:
    """Write a dataset folder; the schema written, which is returned, has the tables' row counts.

    A split's rows are cut into `files` near-equal files, so the last row group of each is a short one.
    """
    schema = schema.model_copy(update={"splits": {split: table.num_rows for split, table in tables.items()}})
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        (folder / split).mkdir(exist_ok=True)
        for part in range(files):
            begin, end = table.num_rows * part // files, table.num_rows * (part + 1) // files
            path = folder / split / f"part-{part:05d}.parquet"
            rows = table.slice(begin, end - begin)
            pq.write_table(rows, path, row_group_size=row_group, compression="zstd", write_page_checksum=True)
    schema.save(folder)
    return schema


def random_table(schema: Schema, rows: int, seed: int = 0) -> pa.Table:
    """Valid rows for any schema."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, pa.Array] = {}
    for feature in schema.sparse:
        if feature.multi:
            lengths = rng.integers(0, 4, rows)
            ids = rng.integers(0, feature.rows, lengths.sum())
            bags = np.split(ids, np.cumsum(lengths))[:rows]
            values = [bag.tolist() for bag in bags]
        else:
            values = rng.integers(0, feature.rows, rows).tolist()
        arrays[feature.name] = pa.array(values, arrow_type(schema, feature.name))
    for name in schema.dense:
        arrays[name] = pa.array(rng.normal(size=rows).astype(np.float32))
    for name in schema.labels:
        arrays[name] = pa.array(rng.integers(0, 2, rows).astype(np.float32))
    if schema.weight:
        arrays[schema.weight] = pa.array(rng.uniform(0.5, 2, rows).astype(np.float32))
    return pa.table(arrays, schema=pa.schema([(name, arrow_type(schema, name)) for name in columns(schema)]))


def poisoned(table: pa.Table, values: Mapping[tuple[str, int], object]) -> pa.Table:
    """The table with other values at some (column, row)."""
    for column, row in values:
        at = table.column_names.index(column)
        changed = table.column(at).to_pylist()
        changed[row] = values[column, row]
        table = table.set_column(at, table.field(at), pa.array(changed, table.field(at).type))
    return table


def flip(path: Path, row_group: int, column: int, back: int = 1, bytes_: int = 1) -> None:
    """Damage bytes of a column's last page, the first of them `back` before its end."""
    chunk = pq.read_metadata(path).row_group(row_group).column(column)
    begin = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    end = begin + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    for at in range(end - back, min(end - back + bytes_, end)):
        content[at] ^= 0xFF
    path.write_bytes(content)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """Any mixture of dense, single- and multi-valued columns, tasks and weights (no splits yet)."""
    features = draw(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=5))
    dense = draw(st.integers(0 if features else 1, 3))
    return Schema(
        dense=tuple(f"I{i}" for i in range(dense)),
        sparse=tuple(Feature(name=f"C{i}", rows=n, multi=multi) for i, (n, multi) in enumerate(features)),
        labels=tuple(f"y{i}" for i in range(draw(st.integers(1, 2)))),
        weight=draw(st.sampled_from([None, "weight"])),
        splits={},
    )
