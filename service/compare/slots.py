"""Cells on this machine: so many at a time, each slot a process that stays up."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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

    def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, float | None]]:
        with _uninterrupted():
            futures = {
                executor.submit(_run, Path(cell.job), folder.edits(cell), folder.run(cell)): cell
                for cell in cells
            }
        try:
            for done in as_completed(futures):
                cell = futures[done]
                try:
                    seconds = done.result()
                except SpartaError as error:
                    raise type(error)(f"{cell.name}: {error}") from error
                except OSError as error:
                    where, why = error.filename or folder.run(cell), error.strerror or error
                    raise DataError(
                        f"{cell.name}: {where}: {why}; mend that and run the study again"
                    ) from error
                except Exception as error:
                    error.add_note(f"in cell {cell.name}, {folder.run(cell)}")
                    raise
                yield cell, seconds
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
