"""A watched folder, and what its feeds give."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sparta.models.schema import Schema, load_schema
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import Partitions
from sparta.service.feed import Arrivals, Feed
from sparta.service.world import World
from tests.service import toys
from tests.service.data.batches import unpack

SIZES = {"batch_size": 16, "streams": 4}

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
