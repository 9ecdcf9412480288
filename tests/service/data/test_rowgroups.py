"""What the loader says of broken data: one line with file, row group, column, value, rule and way out."""

import math
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparta.models.errors import DataError
from sparta.service.data.loader import Loader
from tests.service.data.datasets import MIXED, flip, poisoned, random_table, write_dataset


@pytest.mark.parametrize(
    "column, value, rule",
    [
        ("C1", 1000, "id 1000 is outside its table of 1000 rows"),
        ("C2", -1, "id -1 is outside its table of 9 rows"),
        ("M", [0, 50, 1], "id 50 is outside its table of 50 rows"),
        ("I2", math.nan, "nan is not finite"),
        ("I1", -math.inf, "-inf is not finite"),
        ("y", 0.5, "label 0.5 is neither 0 nor 1"),
        ("y", math.nan, "label nan is neither 0 nor 1"),
        ("w", -2.0, "weight -2.0 is negative"),
        ("w", math.nan, "nan is not finite"),
        ("C3", None, "null"),
        ("I1", None, "null"),
        ("y", None, "null"),
        ("M", None, "null"),
        ("M", [1, None], "null in a list"),
    ],
)
def test_a_bad_value_is_named_with_file_row_group_column_and_row(
    tmp_path: Path, column: str, value: object, rule: str
) -> None:
    schema = write_dataset(
        tmp_path, MIXED, {"train": poisoned(random_table(MIXED, 100), {(column, 70): value})}, row_group=40
    )
    loader = Loader(tmp_path, schema, "train", batch_size=16)
    with pytest.raises(DataError) as caught:
        list(loader.epoch(0))
    message = str(caught.value)
    place = f"{tmp_path}/train/part-00000.parquet: row group 1, column {column!r}, row 30: {rule}"
    assert message.startswith(place)
    assert message.endswith("with `sparta prepare`")
    assert "\n" not in message
    assert not [thread for thread in threading.enumerate() if thread.name == "sparta-loader"]


def test_columns_missing_or_of_another_type_are_named_at_once(tmp_path: Path) -> None:
    table = random_table(MIXED, 10)
    schema = write_dataset(tmp_path, MIXED, {"train": table})
    path = tmp_path / "train" / "part-00000.parquet"
    cases = {
        "column 'I2' of schema.json is missing": table.drop_columns(["I2"]),
        "column 'C1' is int64, it must be int32": table.set_column(0, "C1", table["C1"].cast(pa.int64())),
        "column 'M' is int32": table.set_column(table.column_names.index("M"), "M", table["C1"]),
        "column 'y' is double, it must be float": table.set_column(
            table.column_names.index("y"), "y", table["y"].cast(pa.float64())
        ),
    }
    for message, bad in cases.items():
        pq.write_table(bad, path)
        with pytest.raises(DataError, match=message) as caught:
            Loader(tmp_path, schema, "train", batch_size=16)
        assert str(path) in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)})
    path = tmp_path / "train" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"part-00000.parquet: not readable as Parquet .*sparta prepare"):
        Loader(tmp_path, schema, "train", batch_size=16)


@pytest.mark.parametrize("damaged_bytes", [1, 50], ids=["one byte", "many bytes"])
def test_damaged_pages_are_named_with_their_row_group(tmp_path: Path, damaged_bytes: int) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 1000)}, row_group=500)
    path = tmp_path / "train" / "part-00000.parquet"
    flip(path, 1, 0, back=damaged_bytes, bytes_=damaged_bytes)
    with pytest.raises(
        DataError, match=r"part-00000.parquet: row group 1: not readable as Parquet"
    ) as caught:
        list(Loader(tmp_path, schema, "train", batch_size=16).epoch(0))
    assert "\n" not in str(caught.value)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)})
    loader = Loader(tmp_path, schema, "train", batch_size=16)
    (tmp_path / "train" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00000.parquet: row group 0: not readable"):
        list(loader.epoch(0))


def test_rows_that_disagree_with_the_schema_are_counted(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)}, files=2)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"holds 50 rows in 1 files, but schema.json says 100"):
        Loader(tmp_path, schema, "train", batch_size=16)
    with pytest.raises(DataError, match=r"no split 'test' \(it has: train\)"):
        Loader(tmp_path, schema, "test", batch_size=16)
