"""One slot of a study: a process that stays up, a world of one rank, and trains cell after cell."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing import parent_process
from multiprocessing.queues import Queue
from pathlib import Path

import torch

from sparta.models.errors import ConfigError, DivergedError
from sparta.service.compare.slots import StoppedError
from sparta.service.config import load_job
from sparta.service.run import RunDirectory
from sparta.service.train import train
from sparta.service.world import World, device_for, world
from sparta.sharding.quiet import silence

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that CUDA reads when a process first uses it."""

_here: list[World] = []
_open = ExitStack()
_told = threading.Event()
"""To stop: another cell may be queued for this slot already."""


def start(logs: Path, threads: int, numbers: "Queue[int]") -> None:
    """Make this process a slot: it ends with its parent, to whom Ctrl-C is left (slots.py)."""
    threading.Thread(target=_follow_the_parent, daemon=True).start()
    number = numbers.get()
    file = os.open(logs / f"slot-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    silence()
    torch.set_num_threads(threads)
    if gpus := torch.cuda.device_count():
        os.environ[VISIBLE] = visible(number, gpus)


def visible(slot: int, gpus: int) -> str:
    """The only GPU that a slot sees, for a world of one rank has its tables on the first; the slots share all."""
    seen = os.environ.get(VISIBLE) or ",".join(map(str, range(gpus)))
    return seen.split(",")[slot % gpus]


def run(job_file: Path, edits: Sequence[str], place: Path) -> float:
    """Train one cell to its result, or to what it diverged of, going on with what is there; the seconds it took.

    Raises:
        ConfigError: a job that cannot be run here.
        StoppedError: it was told to stop, in this cell or one before.
    """
    stopped = f"{place}: its slot was told to stop; run it again, and it goes on"
    if _told.is_set():
        raise StoppedError(stopped)
    began = time.perf_counter()
    job = load_job(job_file, edits)
    if not _here:
        _here.append(_open.enter_context(world(job.train.device)))
    if device_for(job.train.device, 1) != _here[0].device.type:
        raise ConfigError(
            f"train.device {job.train.device}: another cell of the study took {_here[0].device.type}; "
            "write one device into the study's set"
        )
    with suppress(DivergedError):  # it stands in the run directory
        if train(job, RunDirectory(place), _here[0], resume=True) is None:
            _told.set()
            raise StoppedError(stopped)
    return time.perf_counter() - began


def _follow_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
