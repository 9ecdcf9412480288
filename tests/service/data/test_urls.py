"""A dataset at a URL gives what its local folder gives, and what a storage fails to give is one line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import Schema, load_schema
from sparta.service.data.loader import Loader
from sparta.service.data.vocab import TEXT, Vocabulary, load_vocabulary
from tests.service.data.batches import global_batches
from tests.service.data.datasets import MIXED, flip, random_table, write_dataset

MEMORY = "memory://sparta-tests/a dataset"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, MIXED, {"train": random_table(MIXED, 200)}, row_group=60, files=2)
    (folder / "vocab").mkdir()
    Vocabulary(pa.array(["b", "a"], TEXT), np.array([7, 3, 2])).save(folder, "C1")
    (folder / "train" / "notes.txt").write_text("not data")
    return folder


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield folder.as_uri()
        return
    system = fsspec.filesystem("memory")
    system.put(str(folder), MEMORY, recursive=True)
    yield MEMORY
    system.rm(MEMORY, recursive=True)


def test_schema_vocabulary_and_batches_are_those_of_the_folder(url: str, folder: Path) -> None:
    schema = load_schema(folder)
    assert load_schema(url) == load_schema(url + "/") == load_schema(str(folder)) == schema
    ours, theirs = load_vocabulary(folder, "C1"), load_vocabulary(url, "C1")
    assert (ours.values, ours.counts.tolist()) == (theirs.values, theirs.counts.tolist())
    for epoch in (0, 1):
        local = global_batches(folder, schema, batch_size=32, epoch=epoch)
        assert global_batches(url, schema, batch_size=32, epoch=epoch) == local


def test_ranks_share_the_files_of_a_url(folder: Path) -> None:
    schema = load_schema(folder)
    one = global_batches(folder, schema, batch_size=32)
    assert global_batches(folder.as_uri(), schema, batch_size=32, ranks=3) == one


def test_damage_behind_a_url_is_skipped_and_named(folder: Path, tmp_path: Path) -> None:
    schema = write_dataset(tmp_path, MIXED, {"train": random_table(MIXED, 100)}, row_group=50)
    flip(tmp_path / "train" / "part-00000.parquet", 1, 0)
    url = tmp_path.as_uri()
    with pytest.raises(DataError, match=f"{url}/train/part-00000.parquet: row group 1: not readable as Parq"):
        list(Loader(url, schema, "train", batch_size=16).epoch(0))
    batches = Loader(url, schema, "train", batch_size=16, skip_bad_rows=True).epoch(0)
    counted = [(flaw.file, n) for batch in batches for flaw, n in batch.skipped.items()]
    assert {file for file, _ in counted} == {f"{url}/train/part-00000.parquet"}
    assert sum(n for _, n in counted) == 50


def test_what_is_not_there_is_one_line(url: str, folder: Path) -> None:
    schema = load_schema(folder)
    with pytest.raises(DataError, match=f"{url}/nowhere: no such dataset"):
        load_schema(f"{url}/nowhere")
    with pytest.raises(DataError, match=f"{url}/train: holds no schema.json"):
        load_schema(f"{url}/train")
    with pytest.raises(DataError, match=f"{url}/vocab/C2.parquet: no readable vocabulary"):
        load_vocabulary(url, "C2")
    absent = schema.model_copy(update={"splits": {"test": 3}})
    with pytest.raises(DataError, match=f"{url}/test: holds 0 rows in 0 files"):
        Loader(url, absent, "test", batch_size=16)


@pytest.mark.parametrize(
    "url, way_out", [("s3://bucket/data", "`pip install s3fs`"), ("s33://b", "Protocol")]
)
def test_a_url_of_a_kind_that_cannot_be_read_here_is_one_line(
    url: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    schema = MIXED.model_copy(update={"splits": {"train": 1}})
    readers = (
        load_schema,
        lambda url: load_vocabulary(url, "C1"),
        lambda url: Loader(url, schema, "train", batch_size=16),
    )
    for read in readers:
        with pytest.raises(ConfigError, match=way_out) as caught:
            read(url)
        assert str(caught.value).startswith(url)
        assert "\n" not in str(caught.value)


class StorageError(Exception):
    """What a package raises that knows no OSError."""


def test_a_storage_that_fails_is_one_line_and_no_bad_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema: Schema = load_schema(folder)
    url = folder.as_uri()
    loader = Loader(url, schema, "train", batch_size=16, skip_bad_rows=True)

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("the bucket is on fire\nand more")

    system = type(fsspec.filesystem("file"))
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileOpener.read", fail, raising=False)
        with pytest.raises(DataError, match=r"group .: not readable .*StorageError: the bucket") as caught:
            list(loader.epoch(0))
        assert "\n" not in str(caught.value)
    cases = {
        "cat_file": lambda: load_schema(url),
        "ls": lambda: Loader(url, schema, "train", batch_size=16),
        "open": lambda: Loader(url, schema, "train", batch_size=16),
    }
    for method, read in cases.items():
        with monkeypatch.context() as patch:
            patch.setattr(system, method, fail)
            with pytest.raises(DataError, match=r"not readable .*StorageError: the bucket") as caught:
                read()
            assert "\n" not in str(caught.value)
