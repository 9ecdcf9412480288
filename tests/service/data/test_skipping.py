"""Bad rows that are skipped: padding where they stood, whatever the ranks, and each counted once."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.models.batch import Batch, Flaw
from sparta.models.errors import DataError
from sparta.models.schema import Schema
from sparta.service.data.loader import Loader
from tests.service.data.batches import Row, unpack
from tests.service.data.datasets import MIXED, columns, flip, poisoned, random_table, schemas, write_dataset

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = Schema(dense=("row",), sparse=(), labels=("y",), splits={})

Place = tuple[str, int, str]
"""File, row group, column."""


def checked(schema: Schema) -> list[str]:
    """The columns in the order in which they are checked: those of lists come last."""
    lists = {feature.name for feature in schema.sparse if feature.multi}
    names = columns(schema)
    return [name for name in names if name not in lists] + [name for name in names if name in lists]


def is_bad(schema: Schema, column: str, value: Any) -> bool:
    """Whether a value breaks its column's rule; slow and obvious."""
    rows = {feature.name: feature.rows for feature in schema.sparse}
    if value is None:
        return True
    if column in rows:
        ids = value if isinstance(value, list) else [value]
        return not all(id_ is not None and 0 <= id_ < rows[column] for id_ in ids)
    if column in schema.labels:
        return value not in (0, 1)
    return not math.isfinite(value) or (column == schema.weight and value < 0)


def poison(schema: Schema, column: str) -> st.SearchStrategy[object]:
    for feature in schema.sparse:
        if feature.name == column:
            bad = [feature.rows, -1, None]
            return st.sampled_from([None, *([id_] for id_ in bad), [0, *bad]] if feature.multi else bad)
    if column in schema.labels:
        return st.sampled_from([0.5, math.nan, None])
    return st.sampled_from([math.nan, math.inf, None, *([-1.0] if column == schema.weight else [])])


def batches(folder: Path, schema: Schema, *, ranks: int, epochs: int = 1, **kwargs: Any) -> list[list[Batch]]:
    """Every global batch, as the shares of the ranks."""
    loaders = [Loader(folder, schema, "train", rank=r, ranks=ranks, **kwargs) for r in range(ranks)]
    return [
        list(parts)
        for epoch in range(epochs)
        for parts in zip(*(loader.epoch(epoch) for loader in loaders), strict=True)
    ]


def slots(schema: Schema, parts: list[Batch]) -> list[Row | None]:
    return [row for part in parts for row in unpack(schema, part)]


def numbers(folder: Path, rows: int, **layout: int) -> Schema:
    """A dataset cut as another one, whose only dense value is the row's number."""
    table = pa.table(
        {"row": pa.array(range(rows), pa.float32()), "y": pa.array([0] * rows, pa.float32())},
    )
    return write_dataset(folder, NUMBERS, {"train": table}, **layout)


def places(rows: int, folder: Path, row_group: int, files: int) -> list[tuple[str, int]]:
    """File and row group of every row."""
    found = []
    for part in range(files):
        inside = rows * (part + 1) // files - rows * part // files
        path = str(folder / "train" / f"part-{part:05d}.parquet")
        found += [(path, row // row_group) for row in range(inside)]
    return found


@FEW
@given(st.data())
def test_batches_are_those_of_clean_data_with_padding_for_bad_rows_and_exact_counts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    schema = data.draw(schemas())
    rows = data.draw(st.integers(1, 60), "rows")
    layout = {"row_group": data.draw(st.integers(1, 25)), "files": data.draw(st.integers(1, 3))}
    streams = data.draw(st.integers(1, 4), "streams")
    sizes = {"batch_size": streams * data.draw(st.integers(1, 5)), "streams": streams}
    sizes |= {
        "ranks": data.draw(st.integers(1, 4), "ranks"),
        "epochs": 2,
        "shuffle": data.draw(st.booleans()),
    }
    drawn = data.draw(
        st.lists(
            st.sampled_from(columns(schema)).flatmap(
                lambda column: st.tuples(st.just(column), st.integers(0, rows - 1), poison(schema, column))
            ),
            min_size=1,
            max_size=12,
        ),
        "poison",
    )
    folder = tmp_path_factory.mktemp("data")
    clean = random_table(schema, rows)
    table = poisoned(clean, {(column, row): value for column, row, value in drawn})
    where = places(rows, folder / "bad", **layout)
    expected: Counter[Place] = Counter()
    bad = set()
    for number, values in enumerate(table.to_pylist()):
        broken = [column for column in checked(schema) if is_bad(schema, column, values[column])]
        if broken:
            bad.add(number)
            expected[(*where[number], broken[0])] += 1

    numbered = numbers(folder / "numbers", rows, **layout)
    plain = write_dataset(folder / "clean", schema, {"train": clean}, **layout)
    schema = write_dataset(folder / "bad", schema, {"train": table}, **layout)
    positions = batches(folder / "numbers", numbered, **sizes)
    given_ = batches(folder / "clean", plain, **sizes)
    found = batches(folder / "bad", schema, skip_bad_rows=True, **sizes)
    counted: Counter[Place] = Counter()
    for position, before, after in zip(positions, given_, found, strict=True):
        # A padding slot holds no row at all: number None.
        at = [None if row is None else int(row[0]) for row in slots(numbered, position)]
        wanted = [None if n in bad else row for n, row in zip(at, slots(schema, before), strict=True)]
        assert slots(schema, after) == wanted
        for part, share in zip(after, position, strict=True):
            own = [row for row in unpack(numbered, share) if row is not None and int(row[0]) in bad]
            assert sum(part.skipped.values()) == len(own)
            assert all(count > 0 for count in part.skipped.values())
            for flaw, count in part.skipped.items():
                counted[flaw.file, flaw.row_group, flaw.column] += count
            assert part.sparse.offsets().tolist() == [0, *part.sparse.lengths().cumsum(0).tolist()]
            assert sum(part.sparse.length_per_key()) == len(part.sparse.values())
    assert counted == Counter({place: 2 * count for place, count in expected.items()})
    with pytest.raises(DataError) as caught:
        batches(folder / "bad", schema, **sizes)
    named = [f"{file}: row group {group}, column {column!r}" for file, group, column in expected]
    assert any(str(caught.value).startswith(name) for name in named)


def test_a_flaw_is_the_line_of_the_error_it_would_be(tmp_path: Path) -> None:
    values: dict[tuple[str, int], object] = {
        ("C1", 5): 1000,
        ("C1", 9): -7,
        ("C2", 5): -1,  # C1's
        ("C2", 7): 99,
        ("I2", 9): math.nan,  # C1's
        ("M", 30): [1, None],
    }
    schema = write_dataset(
        tmp_path, MIXED, {"train": poisoned(random_table(MIXED, 40), values)}, row_group=20
    )
    (whole,) = batches(tmp_path, schema, ranks=1, batch_size=64, skip_bad_rows=True)
    path = f"{tmp_path}/train/part-00000.parquet"
    assert {str(flaw): count for flaw, count in whole[0].skipped.items()} == {
        f"{path}: row group 0, column 'C1', row 5: id 1000 is outside its table of 1000 rows": 2,
        f"{path}: row group 0, column 'C2', row 7: id 99 is outside its table of 9 rows": 1,
        f"{path}: row group 1, column 'M', row 10: null in a list is no id; leave it out of the list": 1,
    }
    with pytest.raises(DataError, match="row 5: id 1000 is outside its table of 1000 rows; prepare the data"):
        batches(tmp_path, schema, ranks=1, batch_size=64, streams=1, shuffle=False)


def test_without_bad_rows_nothing_is_skipped(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)}, row_group=30)
    strict = batches(tmp_path, schema, ranks=2, batch_size=32)
    lenient = batches(tmp_path, schema, ranks=2, batch_size=32, skip_bad_rows=True)
    assert [slots(schema, parts) for parts in strict] == [slots(schema, parts) for parts in lenient]
    assert not any(part.skipped for parts in (*strict, *lenient) for part in parts)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("back", [1, 9])
def test_a_damaged_row_group_is_skipped_whole_and_named(tmp_path: Path, ranks: int, back: int) -> None:
    rows, layout = 100, {"row_group": 30, "files": 1}
    numbered = numbers(tmp_path / "numbers", rows, **layout)
    schema = write_dataset(tmp_path / "bad", MIXED, {"train": random_table(MIXED, rows)}, **layout)
    sizes = {"ranks": ranks, "batch_size": 16, "streams": 4}
    clean = batches(tmp_path / "bad", schema, **sizes)
    path = tmp_path / "bad" / "train" / "part-00000.parquet"
    flip(path, 1, 2, back=back)
    with pytest.raises(DataError, match=f"{path}: row group 1: not readable as Parquet"):
        batches(tmp_path / "bad", schema, **sizes)
    counted: Counter[Flaw] = Counter()
    found = batches(tmp_path / "bad", schema, skip_bad_rows=True, **sizes)
    for position, before, after in zip(
        batches(tmp_path / "numbers", numbered, **sizes), clean, found, strict=True
    ):
        at = [None if row is None else int(row[0]) for row in slots(numbered, position)]
        wanted = [
            None if n is None or 30 <= n < 60 else row
            for n, row in zip(at, slots(schema, before), strict=True)
        ]
        assert slots(schema, after) == wanted
        for part in after:
            counted.update(part.skipped)
    (flaw,) = counted
    assert counted[flaw] == 30
    assert (flaw.file, flaw.row_group, flaw.column) == (str(path), 1, "*")
    assert str(flaw).startswith(f"{path}: row group 1: not readable as Parquet (")
    assert "\n" not in str(flaw)


@settings(FEW, max_examples=25)
@given(st.integers(0, 6), st.integers(1, 400))
def test_a_flipped_byte_anywhere_in_a_column_harms_no_other_row_group(
    tmp_path_factory: pytest.TempPathFactory, column: int, back: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    schema = write_dataset(folder, MIXED, {"train": random_table(MIXED, 90)}, row_group=30)
    path = folder / "train" / "part-00000.parquet"
    sizes = {"ranks": 1, "batch_size": 10, "streams": 1, "shuffle": False}
    clean = [row for parts in batches(folder, schema, **sizes) for row in slots(schema, parts)]
    chunk = pq.read_metadata(path).row_group(1).column(column)
    flip(path, 1, column, back=min(back, chunk.total_compressed_size))
    found = batches(folder, schema, skip_bad_rows=True, **sizes)
    rows = [row for parts in found for row in slots(schema, parts)]
    assert (rows[:30], rows[60:]) == (clean[:30], clean[60:])
    # A page's header has no checksum; what a flip there leaves readable may be the statistics.
    assert rows[30:60] in (clean[30:60], [None] * 30)
    assert sum(n for parts in found for n in parts[0].skipped.values()) == rows.count(None)


def test_what_stands_in_no_row_is_an_error_in_any_case(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)}, files=2)
    first, second = sorted((tmp_path / "train").iterdir())
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(DataError, match=r"holds 50 rows in 1 files, but schema.json says 100"):
        Loader(tmp_path, schema, "train", batch_size=16, skip_bad_rows=True)
    second.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"part-00001.parquet: not readable as Parquet"):
        Loader(tmp_path, schema, "train", batch_size=16, skip_bad_rows=True)
    second.write_bytes(content)
    pq.write_table(pq.read_table(first).drop_columns(["C2"]), first)
    with pytest.raises(DataError, match=r"column 'C2' of schema.json is missing"):
        Loader(tmp_path, schema, "train", batch_size=16, skip_bad_rows=True)


def test_a_file_that_vanishes_is_no_bad_row(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)})
    loader = Loader(tmp_path, schema, "train", batch_size=16, skip_bad_rows=True)
    (tmp_path / "train" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00000.parquet: row group 0: not readable \(.*storage"):
        list(loader.epoch(0))
