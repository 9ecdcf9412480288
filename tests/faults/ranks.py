"""Ranks of a training that tests may kill, stop or starve, started in a moment.

Importing torch and torchrec takes seconds, so a server process does it once and forks the ranks. Each rank runs
`train` as `sparta train` would, with its output in `<run>.rank-<r>.txt`; there is no torchrun, so nobody restarts.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sparta.service.heartbeat import read_beats
from tests.pool import forking

Fault = Callable[..., None]
"""A module-level function that prepares a rank to go wrong: `fault(rank, *arguments)`, called before training."""


@dataclass
class Attempt:
    """One start of all ranks of a run."""

    run: Path
    processes: list[BaseProcess] = field(default_factory=list)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def beats(self) -> dict[int, dict[str, Any]]:
        """What each rank last said."""
        return read_beats(self.run / "logs" / "train", len(self.processes))

    def wait(self, seconds: float = 60.0, *, after_death: float = 10.0) -> list[int]:
        """Exit codes, negative for signals. When one rank has failed, the others are given `after_death`."""
        deadline = time.monotonic() + seconds
        while any(process.is_alive() for process in self.processes):
            if any(process.exitcode for process in self.processes if not process.is_alive()):
                deadline = min(deadline, time.monotonic() + after_death)
                after_death = seconds  # only once
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()  # as torchrun does
            time.sleep(0.005)
        for process in self.processes:
            process.join()
        return [process.exitcode or 0 for process in self.processes]

    def said(self, rank: int) -> str:
        """Everything that a rank has printed, in all attempts."""
        return output_of(self.run, rank).read_text()


def start(
    job: Path, run: Path, ranks: int, fault: Fault | None = None, *arguments: object, resume: bool = True
) -> Attempt:
    """Start all ranks of a run, or start it again."""
    context = forking()
    attempt = Attempt(run)
    store = run.with_name(f"{run.name}.store-{time.monotonic_ns()}")
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        process = context.Process(
            target=_rank, args=(job, run, environment, str(store), resume, fault, arguments), daemon=True
        )
        process.start()
        attempt.processes.append(process)
    return attempt


def output_of(run: Path, rank: int) -> Path:
    """Where a rank prints to."""
    return run.with_name(f"{run.name}.rank-{rank}.txt")


def _rank(
    job: Path,
    run: Path,
    environment: Mapping[str, str],
    store: str,
    resume: bool,
    fault: Fault | None,
    arguments: tuple[object, ...],
) -> None:
    os.environ.update(environment)
    output = os.open(output_of(run, int(environment["RANK"])), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        code = _train(job, run, store, resume, fault, arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(
    job: Path, run: Path, store: str, resume: bool, fault: Fault | None, arguments: tuple[object, ...]
) -> int:
    import torch
    import torch.distributed as dist

    from sparta.models.errors import SpartaError
    from sparta.service.config import load_job
    from sparta.service.run import RunDirectory
    from sparta.service.train import train
    from sparta.service.world import world
    from sparta.sharding.quiet import silence

    silence()
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    if fault is not None:
        fault(rank, *arguments)
    read = load_job(job)
    read = read.model_copy(update={"train": read.train.model_copy(update={"ranks": ranks})})
    try:
        with world("cpu") as here:
            train(read, RunDirectory(run), here, resume=resume)
    except SpartaError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0
