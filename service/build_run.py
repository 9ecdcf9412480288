"""From settings to objects, continued: what a run has beside its model and its data."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparta.models.schema import Schema
from sparta.service.checkpoint.log import Listener
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.config import Job
from sparta.service.feed import Feed
from sparta.service.heartbeat import FOLDER as BEATS
from sparta.service.heartbeat import Heartbeat
from sparta.service.machine import versions
from sparta.service.profile import Profile
from sparta.service.run import RunDirectory
from sparta.service.telemetry.serve import Serving
from sparta.service.telemetry.telemetry import Telemetry
from sparta.service.world import World


def checkpoints(
    job: Job, run: RunDirectory, heartbeat: Heartbeat | None = None, listener: Listener | None = None
) -> Checkpoints:
    """Where the run's checkpoints are; the heartbeat tells of the phases of a save, the listener is told of its end."""
    return Checkpoints(
        job.checkpoint.path or run.checkpoints,
        keep=job.checkpoint.keep,
        background=job.checkpoint.background,
        began=heartbeat.saving if heartbeat else None,
        alive=heartbeat.still if heartbeat else None,
        waits=heartbeat.others if heartbeat else None,
        listener=listener,
    )


def heartbeat(job: Job, run: RunDirectory, world: World) -> Heartbeat:
    """What tells others where this rank is."""
    folder = os.environ.get(BEATS)
    return Heartbeat(
        Path(folder) if folder else run.path / "logs" / "train",
        rank=world.rank,
        ranks=world.ranks,
        stuck_seconds=job.tolerate.stuck_seconds,
    )


def telemetry(
    job: Job, of: Schema, run: RunDirectory, world: World, source: Feed, note: Callable[[str], None]
) -> Telemetry:
    """What this rank tells while it trains."""
    optim = job.optim
    return Telemetry(
        run=run.path.name,
        rank=world.rank,
        device=world.device,
        labels=of.labels,
        rates={"tables": optim.tables.lr, "dense": optim.dense.lr},
        columns=(*of.dense, *(feature.name for feature in of.sparse), *of.labels),
        waiting=lambda: source.waiting,
        note=note,
        about={name.replace("-", "_"): found for name, found in versions().items()},
    )


def serving(job: Job, run: RunDirectory, world: World, heartbeat: Heartbeat, telemetry: Telemetry) -> Serving:
    """Where this rank answers while it trains."""
    return Serving(
        telemetry,
        job.metrics,
        heartbeat,
        world,
        targets=run.metrics,
        labels={"name": job.name, "run": run.path.name},
    )


@contextmanager
def profiled(
    steps: tuple[int, int] | None, start: int, run: RunDirectory, world: World, telemetry: Telemetry
) -> Iterator[None]:
    """Look into some steps of the training that goes on after `start`, if asked to."""
    if steps is None:
        yield
        return
    telemetry.phases = looking = Profile(
        telemetry.phases,
        steps,
        start=start,
        folder=run.path,
        rank=world.rank,
        device=world.device,
        note=telemetry.note,
    )
    try:
        yield
    finally:
        looking.close()
