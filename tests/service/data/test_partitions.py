"""Continuous mode's data: each partition once and in order, encoded as `prepare` would, whole or not at all."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service.data import partitions as module
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import PartitionError, Partitions
from sparta.service.data.prepare import prepare
from tests.service.data.raws import a_raw_row, a_row, read, small, spec_of, write

NAMES = (
    "a.parquet",
    "b/a.parquet",
    "b-c.parquet",
    "day=1/x.PARQUET",
    "day=10/x.parquet",
    "day=2/deep/x.parquet",
)
OTHERS = (
    ".a.parquet",
    "_SUCCESS",
    "_tmp/a.parquet",
    "a.parquet.tmp",
    "b.draft/a.parquet",
    "a.txt",
    ".d/a.parquet",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw `train.parquet` and the dataset `data` made of it."""
    folder = tmp_path_factory.mktemp("home")
    prepare(small(folder), folder / "data", progress=False)
    return folder


def put(watched: Path, name: str, content: bytes) -> None:
    (watched / name).parent.mkdir(parents=True, exist_ok=True)
    (watched / name).write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["whole", "half"]), st.sampled_from(NAMES + OTHERS)),
            st.tuples(st.just("next"), st.just("")),
        ),
        max_size=25,
    )
)
def test_each_partition_comes_once_and_the_first_by_name_comes_first(
    home: Path, tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, str]]
) -> None:
    content = (home / "train.parquet").read_bytes()
    watched = tmp_path_factory.mktemp("watched")
    partitions = Partitions(watched, home / "data", watched.with_name("scratch"), settle_seconds=1e9)
    done: list[str] = []
    here: set[str] = set()
    for what, name in [*events, *((("whole", name)) for name in NAMES), *[("next", "")] * (len(NAMES) + 1)]:
        if what == "next":
            waiting = here - set(done)
            assert partitions.next(done) == (min(waiting) if waiting else None)
            done += [min(waiting)] if waiting else []
        elif what == "whole":
            put(watched, name, content)
            here |= {name} & set(NAMES)
        elif name not in here:
            put(watched, name, content[: len(content) // 2])
    assert sorted(done) == sorted(NAMES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["nothing", "grows", "touched"])), max_size=12))
def test_unreadable_file_is_bad_once_nothing_happens_to_it_for_long_enough(
    home: Path, tmp_path_factory: pytest.TempPathFactory, looks: list[tuple[int, str]]
) -> None:
    content = (home / "train.parquet").read_bytes()
    watched = tmp_path_factory.mktemp("watched")
    partitions = Partitions(watched, home / "data", watched.with_name("scratch"), settle_seconds=5)
    size, mtime, now = 0, 0, 100
    since = None
    for seconds, what in [*looks, (1, "nothing"), (5, "nothing")]:
        now += seconds
        size += what == "grows"
        mtime += what == "touched"
        put(watched, "a.parquet", content[:size])
        os.utime(watched / "a.parquet", ns=(0, mtime))
        put(watched, "b.parquet", content)
        since = now if since is None or what != "nothing" else since
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "monotonic", lambda now=now: now)
            assert partitions.next(()) == "b.parquet", "what is bad holds up nobody"
            if now - since < 5:
                assert partitions.next(["b.parquet"]) is None
                continue
            with pytest.raises(
                PartitionError, match=r"a\.parquet: not readable as Parquet .*write it again"
            ) as bad:
                partitions.next(["b.parquet"])
        assert "\n" not in str(bad.value)
        assert bad.value.name == "a.parquet"
        assert partitions.next([bad.value.name, "b.parquet"]) is None
        again = pickle.loads(pickle.dumps(bad.value))
        assert (str(again), again.name) == (str(bad.value), bad.value.name), "it goes from rank to rank"
    put(watched, "a.parquet", content)
    assert partitions.next(()) == "a.parquet"


def test_folder_that_holds_its_own_scratch_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds the folder of the encoded partitions"):
        Partitions(tmp_path, home / "data", tmp_path / "run" / "scratch")


def test_folder_that_is_not_there_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone: no such folder"):
        Partitions(tmp_path / "gone", home / "data", tmp_path / "scratch").next(())


@settings(max_examples=15, deadline=None)
@given(st.lists(a_row, min_size=1, max_size=8), st.integers(0, 8), st.booleans())
def test_partitions_are_encoded_as_the_training_rows_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], cut: int, hashed: bool
) -> None:
    folder = tmp_path_factory.mktemp("home")
    sparse = {"word": {"hash": 4} if hashed else {}, "code": {"max_rows": 3}, "list": {"multi": True}}
    dense = {"x": {"transform": "standardise"}, "n": {"transform": "bucketise", "nan": "missing"}}
    spec = spec_of({"train": write(folder / "train.parquet", rows)}, sparse=sparse, dense=dense)
    prepare(spec, folder / "data", progress=False)
    (folder / "raw" / "day=1").mkdir(parents=True)
    write(folder / "raw" / "day=1" / "a.parquet", rows[:cut])
    write(folder / "raw" / "day=2.parquet", rows[cut:])
    partitions = Partitions(folder / "raw", folder / "data", folder / "scratch")
    done: list[str] = []
    found: dict[str, list[Any]] = {name: [] for name in read(folder / "data", "train")}
    while (name := partitions.next(done)) is not None:
        encoded = partitions.encode(name)
        schema = load_schema(encoded)
        loader = Loader(encoded, schema, "train", batch_size=4, streams=2)
        batches = [int((batch.slots.weights > 0).sum()) for batch in loader.epoch(0)]
        assert len(batches) == loader.steps
        if schema.splits["train"]:
            for column, values in read(encoded, "train").items():
                found[column] += values
        partitions.drop(name)
        done.append(name)
    assert done == ["day=1/a.parquet", "day=2.parquet"]
    assert found == read(folder / "data", "train")
    assert list((folder / "scratch").iterdir()) == []


def watch(home: Path, folder: Path) -> Partitions:
    """A watched folder with the one partition `a.parquet`."""
    (folder / "raw").mkdir()
    put(folder / "raw", "a.parquet", (home / "train.parquet").read_bytes())
    return Partitions(folder / "raw", home / "data", folder / "scratch")


def test_encoded_partition_is_kept_until_it_is_dropped(home: Path, tmp_path: Path) -> None:
    partitions = watch(home, tmp_path)
    folder = partitions.encode("a.parquet")
    rows = read(folder, "train")
    (tmp_path / "raw" / "a.parquet").unlink()
    again = Partitions(tmp_path / "raw", home / "data", tmp_path / "scratch")
    assert read(again.encode("a.parquet"), "train") == rows
    again.drop("a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no such file"):
        again.encode("a.parquet")


@pytest.mark.parametrize("torn", ["schema.json", "train/part-00000.parquet"])
@pytest.mark.parametrize("size", [None, 0, 60])
def test_torn_folder_is_made_again(home: Path, tmp_path: Path, torn: str, size: int | None) -> None:
    partitions = watch(home, tmp_path)
    folder = partitions.encode("a.parquet")
    rows = read(folder, "train")
    if size is None:
        (folder / torn).unlink()
    else:
        os.truncate(folder / torn, size)
    assert read(partitions.encode("a.parquet"), "train") == rows


def test_folder_of_other_vocabularies_is_made_again(home: Path, tmp_path: Path) -> None:
    before = read(watch(home, tmp_path).encode("a.parquet"), "train")
    files = {"train": write(tmp_path / "other.parquet", [a_raw_row(word="b")] * 2 + [a_raw_row()])}
    prepare(spec_of(files), tmp_path / "other", progress=False)
    partitions = Partitions(tmp_path / "raw", tmp_path / "other", tmp_path / "scratch")
    after = read(partitions.encode("a.parquet"), "train")
    assert (set(before["word"]), set(after["word"])) == ({1}, {2})


def test_partition_that_breaks_a_rule_is_named_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    partitions = watch(home, tmp_path)
    write(tmp_path / "raw" / "bad.parquet", [a_raw_row(), a_raw_row(y=2)])
    with pytest.raises(PartitionError, match=r"bad\.parquet: row 2, column 'y': label is 2"):
        partitions.encode("bad.parquet")
    bare = pq.read_table(tmp_path / "raw" / "a.parquet").drop_columns(["y"])
    pq.write_table(bare, tmp_path / "raw" / "bare.parquet")
    with pytest.raises(DataError, match=r"bare\.parquet: no column 'y'"):
        partitions.encode("bare.parquet")
    assert not list(tmp_path.glob("scratch/*"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file.*: cannot be written"):
        Partitions(tmp_path / "raw", home / "data", tmp_path / "file").encode("a.parquet")


SLOW = """
import os, sys, time
from pathlib import Path
from sparta.service.data.encode import Encoder
from sparta.service.data.partitions import Partitions
if sys.argv[4] == "rows":
    Encoder.encode = lambda *a, **k: time.sleep(60)
else:
    os.rename = lambda *a: time.sleep(60)  # all is written, schema.json too
Partitions(*map(Path, sys.argv[1:4])).encode("a.parquet")
"""


@pytest.mark.parametrize("stage", ["rows", "rename"])
def test_kill_leaves_nothing_that_is_taken_for_whole(home: Path, tmp_path: Path, stage: str) -> None:
    partitions, scratch = watch(home, tmp_path), tmp_path / "scratch"
    folders = [str(tmp_path / "raw"), str(home / "data"), str(scratch)]
    killed = subprocess.Popen([sys.executable, "-c", SLOW, *folders, stage])
    deadline = time.monotonic() + 60
    late = "train" if stage == "rows" else "schema.json"
    while not list(scratch.glob(f".*/{late}")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [path.suffix for path in scratch.iterdir()] == [".draft"]
    assert read(partitions.encode("a.parquet"), "train") == read(home / "data", "train")
    assert [path.suffix for path in scratch.iterdir()] == [""]
