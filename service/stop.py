"""Stopping in time: one rank hears a signal, all agree on the step, without anyone waiting for it.

Every call begins a reduction of the ranks' flags and reads that of the call before, which is long done: what
one rank hears all know a call later, at the same place of the program.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from sparta.service.run import write_atomically
from sparta.sharding.collectives import ranks

MARKER = "STOPPED"
"""In the run directory while it is stopped and can go on; torchrun's exit code does not tell."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """All ranks have agreed to stop."""


class Stop:
    """SIGTERM of any rank; calls are collective, and all ranks get the same answer."""

    def __init__(self) -> None:
        self.heard_at: float | None = None
        """When this process got the signal (`time.monotonic`)."""
        self._group = dist.new_group(backend="gloo") if ranks() > 1 else None
        self._flag = torch.zeros(1)
        self._work: dist.Work | None = None

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Take SIGTERM; Ctrl-C is the launcher's, which passes it on as SIGTERM."""
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _hear(self, number: int, frame: object) -> None:
        self.heard_at = self.heard_at or time.monotonic()

    def __call__(self) -> bool:
        """Whether all stop here."""
        heard = self.heard_at is not None
        if self._group is None:
            return heard
        agreed = False
        if self._work is not None:
            self._work.wait()
            agreed = bool(self._flag)
        self._flag = torch.full((1,), float(heard))
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def seconds_left(self, grace: float) -> float:
        """Of the time between the first signal and the end, on the rank that heard it first. Collective."""
        left = grace if self.heard_at is None else grace - (time.monotonic() - self.heard_at)
        if self._group is None:
            return left
        least = torch.tensor(left, dtype=torch.float64)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
        return float(least)

    def or_raise(self) -> None:
        """Raise `Stopped` where all stop."""
        if self():
            raise Stopped


def mark(run: Path, step: int, checkpoint: int | None) -> None:
    """Leave word that the run was stopped after `step`, and from where it will go on."""
    line = {"step": step, "checkpoint": checkpoint, "reason": "SIGTERM"}
    write_atomically(run / MARKER, json.dumps(line) + "\n")


def unmark(run: Path) -> None:
    (run / MARKER).unlink(missing_ok=True)
