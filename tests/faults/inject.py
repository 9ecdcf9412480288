"""Faults: each prepares one rank to go wrong at a place of its own choosing."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.schema import Schema
from sparta.service import train
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.heartbeat import Heartbeat
from sparta.service.step import BatchLoss

PHASES = ("copy", "data", "metadata", "manifest", "commit", "retain")
"""Of a save, in their order; all ranks copy and write data, the first does the rest."""


def at_phase(
    rank: int, victim: int, phase: str, save: int, watched: int, number: int = signal.SIGKILL
) -> None:
    """Send a signal to rank `victim` when rank `watched` begins a phase of its so-manieth save.

    Only the first rank has the later phases; a victim beside it is told through a file.
    """
    seen = [0]
    plain = Heartbeat.saving

    def saving(self: Heartbeat, name: str) -> None:
        plain(self, name)
        if name == phase and rank == watched:
            seen[0] += 1
            if seen[0] == save:
                _send(self, victim, number)

    Heartbeat.saving = saving  # type: ignore[method-assign]


def at_step(rank: int, victim: int, step: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to rank `victim` when it has finished a step; SIGSTOP makes it stuck."""
    plain = Heartbeat.beat

    def beat(self: Heartbeat, phase: str, at: int | None = None) -> None:
        plain(self, phase, at)
        if rank == victim and phase == "step" and at == step:
            os.kill(os.getpid(), number)

    Heartbeat.beat = beat  # type: ignore[method-assign]


def in_claim(rank: int, victim: int) -> None:
    """Kill a rank when the run directory has its job and does not say yet what the data was."""

    def save(self: Schema, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == victim:
        Schema.save = save  # type: ignore[method-assign]


def poison(rank: int, victim: int, step: int) -> None:
    """Make the loss of one rank's share of a batch NaN."""
    plain = BatchLoss.__call__

    def loss(self: BatchLoss, batch: Batch) -> Tensor:
        value = plain(self, batch)
        return value * float("nan") if rank == victim and batch.slots.step == step else value

    BatchLoss.__call__ = loss  # type: ignore[method-assign]


def fill_disk(rank: int, folder: Path, save: int) -> None:
    """Fill the file system of a folder while rank 0 writes the data of its so-manieth save; free it after that."""
    seen = [0]
    plain = Heartbeat.saving
    filler = folder / "filler"

    def saving(self: Heartbeat, phase: str) -> None:
        plain(self, phase)
        if rank:
            return
        seen[0] += phase == "data"
        if phase == "data" and seen[0] == save:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
        if not phase:
            filler.unlink(missing_ok=True)

    Heartbeat.saving = saving  # type: ignore[method-assign]


def in_check(rank: int, victim: int) -> None:
    """Kill a rank before it tries the model, in which the others then wait for it."""
    if rank == victim:
        train.check_forward = lambda job, schema: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def commit_first(rank: int, then: Callable[..., None] | None = None, *arguments: object) -> None:
    """The mistake that all this is about: a folder is called complete before its files are written."""
    plain = Checkpoints._fresh

    def fresh(self: Checkpoints, step: int) -> str:
        name = plain(self, step)
        disk.commit(self.storage, name, "")
        return name

    Checkpoints._fresh = fresh  # type: ignore[method-assign]
    if then is not None:
        then(rank, *arguments)


def _send(heartbeat: Heartbeat, victim: int, number: int) -> None:
    """Send a signal to a rank of this machine, whose process its heartbeat names."""
    from sparta.service.heartbeat import read_beats

    assert heartbeat._folder is not None
    while victim not in (beats := read_beats(Path(heartbeat._folder), heartbeat._ranks)):
        time.sleep(0.001)
    os.kill(beats[victim]["pid"], number)
    time.sleep(0.05)  # no further in this phase than the other got
