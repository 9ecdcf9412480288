"""Cells on this machine: so many at a time, each slot a process that stays up."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path

from sparta.models.errors import DataError, SpartaError
from sparta.service.compare.arguments import cores
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.run import Runner

_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
_EVERYBODY_S = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of which every other cell would fail too."""


class StoppedError(SpartaError):
    """A slot was told to stop, and takes up no cell any more."""


@contextmanager
def slots(folder: Folder, number: int) -> Iterator[Runner]:
    """Processes that share the cores; what they are at when they are left is stopped in time, and can go on."""
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    threads = max(1, cores() // number)
    # Which libraries of the slots read when they are loaded.
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    numbers = spawn.Queue()
    for slot in range(number):
        numbers.put(slot)
    start = partial(_start, folder.logs, threads, numbers)
    executor = ProcessPoolExecutor(number, spawn, initializer=start)

    def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, float | Exception | None]]:
        with _uninterrupted():
            futures = {
                executor.submit(_run, Path(cell.job), folder.edits(cell), folder.run(cell)): cell
                for cell in cells
            }
        try:
            for done in as_completed(futures):
                yield futures[done], _took(folder, futures[done], done)
        except BrokenProcessPool as error:
            raise SpartaError(
                f"a slot was killed (out of memory?), see {folder.logs}; what is done stays, run it again"
            ) from error

    try:
        yield run
    except BaseException as error:
        # A second Ctrl-C would make them no faster, and leave this process waiting for them for good.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        executor.shutdown(cancel_futures=True)
        if not isinstance(error, KeyboardInterrupt):  # after which this process only ends
            signal.signal(signal.SIGINT, before)
        raise
    executor.shutdown()


def _took(folder: Folder, cell: Cell, done: "Future[float]") -> float | Exception:
    """The seconds that a cell took, or what it failed of, with its name.

    Raises:
        DataError: a disk that is full, or fails.
        SpartaError: its slot was told to stop.
        BrokenProcessPool: a slot was killed.
    """
    try:
        return done.result()
    except BrokenProcessPool:
        raise
    except StoppedError as error:
        raise SpartaError(f"{cell.name}: {error}") from error
    except OSError as error:
        where, why = error.filename or folder.run(cell), error.strerror or error
        named: SpartaError = DataError(f"{cell.name}: {where}: {why}; mend that and run the study again")
        if error.errno in _EVERYBODY_S:
            raise named from error
    except SpartaError as error:
        named = type(error)(f"{cell.name}: {error}")
    except Exception as error:
        error.add_note(f"in cell {cell.name}, {folder.run(cell)}")
        return error
    return named


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never hear it, not even while they load."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# The slots load torch, this process need not.


def _start(logs: Path, threads: int, numbers: "Queue[int]") -> None:
    from sparta.service.compare.worker import start

    start(logs, threads, numbers)


def _run(job: Path, edits: Sequence[str], run_directory: Path) -> float:
    from sparta.service.compare.worker import run

    return run(job, edits, run_directory)
