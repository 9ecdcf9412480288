"""Cut anywhere, a feed gives the batches that were left; each partition is trained on once, in order."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.models.batch import Batch
from sparta.models.schema import Schema, load_schema
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import Partitions
from sparta.service.feed import Arrivals, Epochs, Feed
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

    def feed(self, max_steps: int | None = None, idle_seconds: float = 0.0) -> Arrivals:
        return Arrivals(
            Partitions(self.folder, self.data, self.scratch),
            self._loader,
            self.here,
            poll_seconds=0.001,
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
    assert len(idle) == 9


def test_what_stops_a_wait_leaves_a_state_to_go_on_from(watched: Watched) -> None:
    class Told(Exception):  # noqa: N818
        """To stop."""

    def stop() -> None:
        raise Told

    feed = watched.feed(idle_seconds=60.0)
    with pytest.raises(Told):
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
