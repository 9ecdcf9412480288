"""Cut anywhere, a feed gives the batches that were left; each partition is trained on once, in order."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.models.batch import Batch
from sparta.models.errors import DataError
from sparta.models.schema import Schema, load_schema
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import Partitions
from sparta.service.feed import SLICE_SECONDS, Arrivals, Epochs, Feed
from sparta.service.world import World, world
from tests.pool import Pool
from tests.service import toys
from tests.service.data.batches import unpack
from tests.service.data.datasets import MIXED, random_table, write_dataset

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = {"batch_size": 16, "streams": 4}
DAYS = {"day=1/a.parquet": 40, "day=2/a.parquet": 0, "day=2/b.parquet": 16, "day=3/a.parquet": 7}
"""Rows of each partition: 3, 0, 1 and 1 steps."""
STEPS = 5

Told = list[tuple[int, int, list[Any]]]
"""Step, epoch and rows of every batch."""


def nobody() -> None:
    """What there is to do while there are no batches."""


def told(feed: Feed, schema: Schema, step: int, idle: Callable[[], None] = nobody) -> Told:
    """All batches after a step, as a trainer takes them."""
    found = []
    for stretch in feed.stretches(step, idle):
        for batch in stretch:
            at = batch.slots.step
            found.append((at, feed.epoch(at), unpack(schema, batch)))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schema]:
    """A dataset of 75 rows: 5 batches an epoch, the last of them padded."""
    folder = tmp_path_factory.mktemp("small")
    return folder, write_dataset(folder, MIXED, {"train": random_table(MIXED, 75)}, row_group=20, files=2)


@FEW
@given(st.integers(1, 17), st.integers(0, 18), st.integers(1, 3), st.data())
def test_epochs_that_are_cut_anywhere_go_on_with_the_batches_that_were_left(
    small: tuple[Path, Schema], total: int, cut: int, ranks: int, data: st.DataObject
) -> None:
    folder, schema = small
    rank = data.draw(st.integers(0, ranks - 1), "rank")

    def feed() -> Epochs:
        return Epochs(Loader(folder, schema, "train", rank=rank, ranks=ranks, **SIZES), total)

    whole = feed()
    batches = told(whole, schema, 0)
    assert [step for step, *_ in batches] == list(range(1, total + 1))
    assert [epoch for _, epoch, _ in batches] == [(step - 1) // 5 for step in range(1, total + 1)]
    assert [step for step in range(1, total + 1) if whole.ends(step)] == [total]
    assert [step for step in range(1, total + 1) if whole.rests(step)] == list(range(5, total + 1, 5))
    again = feed()
    again.load_state_dict(whole.state_dict(cut))
    assert told(again, schema, cut) == batches[cut:]


@pytest.fixture(scope="module")
def days(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of partitions; do not change it."""
    folder = tmp_path_factory.mktemp("days") / "watched"
    for number, (name, rows) in enumerate(DAYS.items()):
        put(folder / name, rows, number)
    return folder


def put(path: Path, rows: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(toys.raw_table(rows, seed), path)


@dataclass
class Watched:
    """A watched folder and what to make feeds of it."""

    here: World
    data: Path
    folder: Path
    scratch: Path
    opened: list[Path] = field(default_factory=list)

    def feed(
        self,
        max_steps: int | None = None,
        idle_seconds: float = 0.0,
        poll_seconds: float = 0.001,
        bad_partitions: int = 0,
    ) -> Arrivals:
        return Arrivals(
            Partitions(self.folder, self.data, self.scratch, settle_seconds=1e-9),
            self._loader,
            self.here,
            bad_partitions=bad_partitions,
            poll_seconds=poll_seconds,
            idle_seconds=idle_seconds,
            max_steps=max_steps,
        )

    def _loader(self, folder: Path) -> Loader:
        self.opened.append(folder)
        rank = {"rank": self.here.rank, "ranks": self.here.ranks}
        return Loader(folder, load_schema(folder), "train", **SIZES, **rank)

    def told(self, feed: Arrivals, step: int = 0, idle: Callable[[], None] = nobody) -> Told:
        return told(feed, load_schema(self.data), step, idle)


@pytest.fixture
def watched(data: Path, days: Path, tmp_path: Path) -> Iterator[Watched]:
    with world("cpu") as here:
        yield Watched(here, data, days, tmp_path / "scratch")


def test_each_partition_is_trained_on_once_in_order_and_is_an_epoch(watched: Watched) -> None:
    feed = watched.feed()
    found = watched.told(feed)
    assert [(step, epoch) for step, epoch, _ in found] == [(1, 0), (2, 0), (3, 0), (4, 2), (5, 3)]
    samples = [0] * len(DAYS)
    for _, epoch, rows in found:
        samples[epoch] += sum(row is not None for row in rows)
    assert samples == list(DAYS.values())
    assert list(watched.scratch.iterdir()) == []


@FEW
@given(st.integers(0, STEPS), st.booleans())
def test_a_feed_that_is_cut_anywhere_goes_on_in_the_middle_of_its_partition(
    watched: Watched, cut: int, encoded_is_gone: bool
) -> None:
    whole = watched.told(watched.feed())
    feed, state = watched.feed(), watched.feed().state_dict(0)
    due: dict[int, tuple[bool, bool, int]] = {}
    for stretch in feed.stretches(0, nobody):
        for batch in stretch:
            step = batch.slots.step
            due[step] = feed.ends(step), feed.rests(step), feed.epoch(step)
            if step == cut:
                # The next batch of the stretch is made before its state is asked for.
                next(stretch, None)
                state = feed.state_dict(step)
        if cut in due:
            break
    again = watched.feed()
    again.load_state_dict(state)
    if cut:  # what was due after the step may have been interrupted
        assert (again.ends(cut), again.rests(cut), again.epoch(cut)) == due[cut]
    if encoded_is_gone:
        shutil.rmtree(watched.scratch, ignore_errors=True)
    assert watched.told(again, cut) == whole[cut:]


@FEW
@given(st.integers(1, STEPS + 2), st.integers(1, STEPS + 2))
def test_the_last_step_may_be_in_the_middle_and_a_later_one_takes_up_the_rest(
    watched: Watched, first: int, then: int
) -> None:
    whole = watched.told(watched.feed())
    feed = watched.feed(max_steps=first)
    assert watched.told(feed) == whole[:first]
    if first <= STEPS:
        assert feed.ends(first)
    again = watched.feed(max_steps=max(first, then))
    again.load_state_dict(feed.state_dict(min(first, STEPS)))
    assert watched.told(again, min(first, STEPS)) == whole[first : max(first, then)]


def test_a_partition_that_arrives_while_all_wait_is_trained_on(
    data: Path, tmp_path: Path, watched: Watched
) -> None:
    watched.folder = tmp_path / "watched"
    watched.folder.mkdir()
    idle: list[int] = []

    def arrive() -> None:
        idle.append(1)
        if len(idle) % 3 == 0 and len(idle) <= 9:
            put(watched.folder / f"{len(idle)}.parquet", 16, len(idle))

    feed = watched.feed(idle_seconds=60.0, max_steps=3)
    found = watched.told(feed, idle=arrive)
    assert [(step, epoch) for step, epoch, _ in found] == [(1, 0), (2, 1), (3, 2)]
    assert len(idle) >= 9


class Stop(Exception):  # noqa: N818
    """To stop."""


def test_what_stops_a_wait_leaves_a_state_to_go_on_from(watched: Watched) -> None:
    feed = watched.feed(idle_seconds=60.0)

    def stop() -> None:
        if len(feed.state_dict(STEPS)["done"]) == len(DAYS):
            raise Stop

    with pytest.raises(Stop):
        watched.told(feed, idle=stop)
    again = watched.feed()
    again.load_state_dict(feed.state_dict(STEPS))
    assert watched.told(again, STEPS) == []


def test_one_that_is_no_longer_needed_is_not_encoded_again(watched: Watched) -> None:
    feed = watched.feed()
    watched.told(feed)
    watched.opened.clear()
    again = watched.feed()
    again.load_state_dict(feed.state_dict(STEPS))
    watched.told(again, STEPS)
    assert watched.opened == []


def test_a_long_wait_is_idle_in_slices(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    looks = count()
    monkeypatch.setattr(Partitions, "next", lambda *_: None if next(looks) < 2 else "day=1/a.parquet")
    idle: list[int] = []
    feed = watched.feed(idle_seconds=60.0, poll_seconds=7.3, max_steps=1)
    watched.told(feed, idle=lambda: idle.append(len(slept)))
    assert sum(slept) == pytest.approx(2 * 7.3)
    assert max(slept) <= SLICE_SECONDS
    assert idle[: len(slept)] == list(range(len(slept))), "each is heard before the next"


def test_a_stop_while_a_partition_is_encoded_leaves_it_for_later(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = watched.told(watched.feed())
    stopped, ended, encode = Event(), Event(), Partitions.encode

    def slow(partitions: Partitions, name: str) -> Path:
        first = name == "day=2/b.parquet" and not stopped.is_set()
        if first:
            stopped.wait()
        folder = encode(partitions, name)
        if first:
            ended.set()
        return folder

    def stop() -> None:
        if "day=2/a.parquet" in feed.state_dict(3)["done"]:
            raise Stop

    monkeypatch.setattr(Partitions, "encode", slow)
    feed = watched.feed()
    with pytest.raises(Stop):
        watched.told(feed, idle=stop)
    state = feed.state_dict(3)
    stopped.set()
    ended.wait()
    again = watched.feed()
    again.load_state_dict(state)
    assert (again.ends(3), again.epoch(3)) == (True, 2)
    assert watched.told(again, 3) == whole[3:]


ENDLESS = """
import sys
from itertools import cycle
from pathlib import Path
from sparta.service.data.partitions import Partitions
from sparta.service.data.raw import RawFile
from sparta.service.feed import Arrivals
from sparta.service.world import world
read = RawFile.read
RawFile.read = lambda *a: cycle(read(*a))
def stop():
    if list(Path(sys.argv[3]).glob(".*.draft/train/*")):
        sys.exit(9)
with world("cpu") as here:
    partitions = Partitions(*map(Path, sys.argv[1:4]))
    feed = Arrivals(partitions, None, here, poll_seconds=1, idle_seconds=None, max_steps=None)
    next(feed.stretches(0, stop))
"""


def test_a_process_that_stops_waits_for_no_encoding(watched: Watched) -> None:
    folders = map(str, (watched.folder, watched.data, watched.scratch))
    process = subprocess.run([sys.executable, "-c", ENDLESS, *folders], timeout=60, capture_output=True)
    assert process.returncode == 9, process.stderr
    assert list(watched.scratch.iterdir()) == []


def spoilt(folder: Path, kinds: Mapping[str, str]) -> list[str]:
    """A folder of partitions of one step each, some of them bad; the names of these."""
    for number, (name, kind) in enumerate(kinds.items()):
        put(folder / name, 16, number)
        if kind == "torn":
            (folder / name).write_bytes((folder / name).read_bytes()[:99])
        if kind == "broken":
            table = pq.read_table(folder / name)
            pq.write_table(
                table.set_column(table.column_names.index("click"), "click", [[7] * 16]), folder / name
            )
    return [name for name, kind in kinds.items() if kind != "good"]


@FEW
@given(
    st.lists(st.sampled_from(["good", "torn", "broken"]), min_size=1, max_size=5),
    st.integers(0, 4),
)
def test_so_many_bad_partitions_are_passed_over_named_and_not_tried_again(
    watched: Watched,
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    limit: int,
) -> None:
    watched.folder, watched.scratch = (tmp_path_factory.mktemp(name) for name in ("spoilt", "scratch"))
    bad = spoilt(watched.folder, {f"{number}.parquet": kind for number, kind in enumerate(kinds)})
    good = len(kinds) - len(bad)
    notes: list[str] = []
    feed = watched.feed(bad_partitions=limit, idle_seconds=0.02)

    def steps() -> int:
        return sum(1 for stretch in feed.stretches(0, nobody, notes.append) for _ in stretch)

    if len(bad) > limit:
        way_out = f"parquet: .*; or pass over more than {limit} bad files with tolerate.bad_partitions$"
        with pytest.raises(DataError, match=way_out):
            steps()
        assert len(notes) == limit
        return
    assert (steps(), len(notes)) == (good, len(bad))
    for name in bad:
        assert sum(f"{name}: " in note for note in notes) == 1
    state = json.loads(json.dumps(feed.state_dict(good)))
    assert sorted(state["passed_over"]) == bad
    again = watched.feed(bad_partitions=limit, idle_seconds=0.02)
    again.load_state_dict(state)
    assert list(again.stretches(good, nobody, notes.append)) == []
    assert len(notes) == len(bad)


def test_one_that_is_bad_when_a_run_goes_on_in_its_middle_is_passed_over(
    watched: Watched, tmp_path: Path
) -> None:
    watched.folder = tmp_path / "watched"
    put(watched.folder / "a.parquet", 40, 0)
    put(watched.folder / "b.parquet", 16, 1)
    feed = watched.feed(max_steps=2)
    watched.told(feed)
    shutil.rmtree(watched.scratch, ignore_errors=True)
    spoilt(watched.folder, {"a.parquet": "torn"})
    again = watched.feed(bad_partitions=1)
    again.load_state_dict(feed.state_dict(2))
    assert [(step, epoch) for step, epoch, _ in watched.told(again, 2)] == [(3, 1)]


def passed_over(rank: int, ranks: int, data: Path, folder: Path, scratch: Path) -> tuple[list[str], int, int]:
    """What this rank is told, how often it is idle, and the steps."""
    with world("cpu") as here:
        feed = Watched(here, data, folder, scratch).feed(bad_partitions=2, idle_seconds=0.3)
        notes: list[str] = []
        idle: list[int] = []
        stretches = feed.stretches(0, lambda: idle.append(1), notes.append)
        steps = sum(1 for stretch in stretches for _ in stretch)
        return notes, len(idle), steps


def test_all_ranks_pass_over_the_same_and_are_idle_equally_often(
    pool: Pool, data: Path, tmp_path: Path
) -> None:
    kinds = {"a.parquet": "broken", "b.parquet": "torn", "c.parquet": "good"}
    spoilt(tmp_path / "watched", kinds)
    found = pool.run(2, passed_over, data, tmp_path / "watched", tmp_path / "scratch")
    assert found[0] == found[1]
    notes, idle, steps = found[0]
    assert (len(notes), steps) == (2, 1)
    assert idle > 0


def together(rank: int, ranks: int, data: Path, folder: Path, scratch: Path) -> list[tuple[int, int, int]]:
    """Step, epoch and samples of this rank's share of every batch, cut and taken up after step 2."""

    def samples(batch: Batch) -> int:
        return int((batch.slots.weights > 0).sum())

    with world("cpu") as here:
        watched = Watched(here, data, folder, scratch)
        feed = watched.feed(max_steps=2)
        found = [
            (b.slots.step, feed.epoch(b.slots.step), samples(b)) for s in feed.stretches(0, nobody) for b in s
        ]
        again = watched.feed()
        again.load_state_dict(feed.state_dict(2))
        return found + [
            (b.slots.step, again.epoch(b.slots.step), samples(b))
            for s in again.stretches(2, nobody)
            for b in s
        ]


def test_all_ranks_have_the_same_steps(pool: Pool, data: Path, days: Path, tmp_path: Path) -> None:
    found = pool.run(2, together, data, days, tmp_path / "scratch")
    steps = [[(step, epoch) for step, epoch, _ in of_rank] for of_rank in found]
    assert steps[0] == steps[1] == [(1, 0), (2, 0), (3, 0), (4, 2), (5, 3)]
    assert sum(samples for of_rank in found for *_, samples in of_rank) == sum(DAYS.values())
