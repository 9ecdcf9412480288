"""Four worker processes, started once for the whole test session, that act as ranks over gloo.

Importing torch and torchrec takes seconds a process, so a server does it once and forks the workers, and they stay;
each call makes a fresh default process group of 1, 2 or 4 of them and takes it down after, so code under test finds
its ranks in the world group.
`fn(rank, ranks, *args)` must be a module-level function. An exception or a hang in any worker fails the call
with that worker's traceback; workers that hang or died are then replaced.
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

START_SECONDS = 180.0
GRACE_SECONDS = 3.0
"""Time for the other ranks to report after the first has failed."""


def forking() -> ForkServerContext:
    """What starts processes in a moment: forks of one server of this process that has imported preload.py."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return context


class RankError(AssertionError):
    """A rank raised, died or hung; the message holds its traceback."""


def _send(pipe: Connection, what: Any) -> None:
    # As bytes: `Connection.send` would share the memory of tensors, and every tensor kept would keep a file open.
    pipe.send_bytes(pickle.dumps(what))


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _reset_torchrec() -> None:
    """Forget the node groups TorchRec keeps for the life of a process."""
    from torchrec.distributed import collective_utils, comm

    for name in ("_INTRA_PG", "_CROSS_PG"):
        setattr(comm, name, None)
    if hasattr(collective_utils, "_INITIALIZED"):
        collective_utils._INITIALIZED = False


def _run(rank: int, store: str, ranks: int, local_ranks: int, fn: Callable[..., Any], args: Any) -> Any:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK=str(rank % local_ranks),
        LOCAL_WORLD_SIZE=str(local_ranks),
    )
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    try:
        return fn(rank, ranks, *args)
    finally:
        dist.destroy_process_group()
        _reset_torchrec()


def _worker(rank: int, pipe: Connection, stacks: str) -> None:
    from sparta.sharding.quiet import silence

    silence()
    # Ranks talk over the loopback only; the interface of the host name may not exist in a sandbox.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torchrec  # noqa: F401

    torch.set_num_threads(1)
    with open(stacks, "w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        _send(pipe, "ready")
        while True:
            try:
                store, ranks, local_ranks, fn, args = _receive(pipe)
            except EOFError:
                return
            try:
                reply = (True, _run(rank, store, ranks, local_ranks, fn, args))
            except BaseException:
                reply = (False, traceback.format_exc())
            try:
                _send(pipe, reply)
            except Exception:
                _send(pipe, (False, traceback.format_exc()))


class Pool:
    """The workers; `run` is all a test needs."""

    def __init__(self, folder: Path, size: int = 4) -> None:
        self._folder = folder
        self._size = size
        self._workers: list[tuple[Any, Connection]] = []
        self._calls = 0

    def run(
        self,
        ranks: int,
        fn: Callable[..., Any],
        *args: Any,
        local_ranks: int | None = None,
        timeout_seconds: float = 120.0,
    ) -> list[Any]:
        """Results of `fn(rank, ranks, *args)` in the order of the ranks.

        Args:
            local_ranks: LOCAL_WORLD_SIZE; 2 makes 4 ranks look like two nodes. All of them by default.
        """
        if not 1 <= ranks <= self._size:
            raise ValueError(f"the pool has {self._size} workers, not {ranks}")
        if not self._workers:
            self._start()
        self._calls += 1
        store = str(self._folder / f"store-{self._calls}")
        pipes = [pipe for _, pipe in self._workers[:ranks]]
        for pipe in pipes:
            _send(pipe, (store, ranks, local_ranks or ranks, fn, args))
        replies = self._collect(pipes, timeout_seconds)
        failed = [rank for rank in range(ranks) if rank not in replies or not replies[rank][0]]
        if not failed:
            return [replies[rank][1] for rank in range(ranks)]
        message = "\n".join(
            f"--- rank {rank} of {ranks}:\n{replies[rank][1] if rank in replies else self._stack(rank)}"
            for rank in failed
        )
        if len(replies) < ranks or not all(process.is_alive() for process, _ in self._workers):
            self.close()
        raise RankError(f"{fn.__module__}.{fn.__name__} failed\n{message}")

    def close(self) -> None:
        """Kill the workers; the next call starts new ones."""
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []

    def _start(self) -> None:
        context = forking()
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_worker, args=(rank, theirs, str(self._folder / f"stack-{rank}")), daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        deadline = time.monotonic() + START_SECONDS
        for rank, (process, pipe) in enumerate(self._workers):
            pipe.poll(max(0.0, deadline - time.monotonic()))
            try:
                ready = pipe.poll() and _receive(pipe) == "ready"
            except EOFError:
                ready = False
            if not ready:
                state = "is still starting" if process.is_alive() else f"died with {process.exitcode}"
                self.close()
                raise RankError(f"worker {rank} {state}")

    def _collect(self, pipes: list[Connection], timeout_seconds: float) -> dict[int, tuple[bool, Any]]:
        replies: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout_seconds
        waiting = dict(zip(pipes, range(len(pipes)), strict=True))
        while waiting and (left := deadline - time.monotonic()) > 0:
            for pipe in wait(list(waiting), timeout=left):
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    replies[rank] = _receive(pipe)
                except EOFError:
                    process = self._workers[rank][0]
                    process.join(timeout=1)
                    replies[rank] = (False, f"the process died with exit code {process.exitcode}")
                if not replies[rank][0]:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return replies

    def _stack(self, rank: int) -> str:
        process = self._workers[rank][0]
        path = self._folder / f"stack-{rank}"
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.3)
        return f"no answer in time; it was here:\n{path.read_text()}"
