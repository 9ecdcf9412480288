"""Cut anywhere, a feed gives the batches that were left; each partition is trained on once, in order."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.models.batch import Batch
from sparta.models.schema import Schema
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import Partitions
from sparta.service.feed import SLICE_SECONDS, Epochs
from sparta.service.world import world
from tests.pool import Pool
from tests.service.data.datasets import MIXED, random_table, write_dataset
from tests.service.watched import SIZES, Watched, nobody, put, told

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DAYS = {"day=1/a.parquet": 40, "day=2/a.parquet": 0, "day=2/b.parquet": 16, "day=3/a.parquet": 7}
"""Rows of each partition: 3, 0, 1 and 1 steps."""
STEPS = 5


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
