"""`sparta compare`: the service runs a study's cells in slots of this machine; with --submit each is a job of its own.

Then this process hands the cells to `sparta submit`, so many at a time, and reads what they came to in their run
directories: the study's folder is on storage that the scheduler's machines reach under the same path. A handle is
kept beside the cells, so that a study that was killed finds its jobs again.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparta.launcher.local import MEMORY_AND_THREADS
from sparta.launcher.records import PREFIX, known
from sparta.launcher.submit import LOCAL, SCHEDULERS, hand_over
from sparta.models.errors import ConfigError, SpartaError
from sparta.service.arguments import parser
from sparta.service.compare.arguments import cores, read
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.run import Runner, alone, check, check_jobs, go, listed
from sparta.service.run import write_atomically

POLL_SECONDS = 2.0
LAG_SECONDS = 60.0
"""How much later than its end a job's files may be seen here."""
GONE = "GONE"
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", GONE)


def compare(argv: Sequence[str], *, service: str) -> int:
    """Run the verb; its exit code.

    Raises:
        ConfigError: in one line.
    """
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    ours, theirs = words[:at], words[at + 1 :]
    if not any(word.partition("=")[0] == "--submit" for word in ours):
        from sparta.launcher.cli import become

        os.environ.update({name: os.environ.get(name, value) for name, value in MEMORY_AND_THREADS.items()})
        become(service, "compare", words)
    arguments = parser().parse_args(["compare", *ours])
    scheduler = arguments.submit
    if scheduler not in SCHEDULERS:
        raise ConfigError(f"--submit {scheduler}: none of {', '.join(SCHEDULERS)}")
    folder, part = read(arguments)
    if arguments.dry_run:
        for line in listed(folder, part, ("sparta", "submit", "-s", scheduler, *theirs)):
            print(line)
        return 0
    folder.make()
    check_jobs(folder, part)
    if part.stages == ("table",):  # which one may look at while cells are run
        return _stage(service, ours, "table")
    if "prepare" in part.stages and (code := _stage(service, ours, "prepare")):
        return code
    with alone(folder):
        check(folder, part)
        try:
            go(folder, part, submitted(folder, scheduler, theirs, arguments.slots or cores(), service))
        except KeyboardInterrupt:
            print(
                "stopped; jobs that were submitted run on, the same command finds them again", file=sys.stderr
            )
            raise
    return _stage(service, ours, "table") if "table" in part.stages else 0


def submitted(folder: Folder, scheduler: str, words: Sequence[str], number: int, service: str) -> Runner:
    """Cells as jobs of a scheduler, at most `number` at a time.

    Args:
        words: further options of `sparta submit`.
    """

    def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, float | Exception | None]]:
        waiting, running = list(cells), list[tuple[Cell, str]]()
        ended, lag = dict[str, float](), 0.0 if scheduler == LOCAL else LAG_SECONDS
        while waiting or running:
            while waiting and len(running) < number:
                cell = waiting.pop(0)
                running.append((cell, _handle(folder, cell, scheduler, words, service)))
            for cell, handle in list(running):
                if not folder.finished(cell):
                    if _state(handle) in ENDED:
                        ended.setdefault(handle, time.monotonic())
                    # Other machines' files may be seen late.
                    if handle not in ended or folder.finished(cell) or time.monotonic() < ended[handle] + lag:
                        continue
                running.remove((cell, handle))
                _kept(folder, cell).unlink(missing_ok=True)
                yield cell, None if folder.finished(cell) else _failed(folder, cell, handle)
            time.sleep(POLL_SECONDS if running else 0)

    return run


def _failed(folder: Folder, cell: Cell, handle: str) -> SpartaError:
    return SpartaError(
        f"{cell.name}: job {handle} ended without a result in {folder.run(cell)}; "
        f"`sparta logs {handle}` says why; what is done stays, run it again"
    )


def _handle(folder: Folder, cell: Cell, scheduler: str, words: Sequence[str], service: str) -> str:
    """The job of a cell: that of a study that was killed, or a new one."""
    kept = _kept(folder, cell)
    if kept.exists():
        return kept.read_text().strip()
    argv = [cell.job, "-s", scheduler, "--run-dir", str(folder.run(cell))]
    argv += [word for change in folder.edits(cell) for word in ("--set", change)]
    handle = hand_over([*argv, *(["--resume"] if scheduler == LOCAL else []), *words], service=service)
    write_atomically(kept, handle + "\n")
    return handle


def _kept(folder: Folder, cell: Cell) -> Path:
    return folder.path / "cells" / f"{folder.key(cell)}.handle"


def _state(handle: str) -> str:
    """As the scheduler says it, or GONE where it knows no such job: it was removed, maybe long after its end."""
    if handle.startswith(PREFIX):
        return record.state() if (record := known(handle)) else GONE
    from sparta.launcher import cluster

    found = cluster.known(handle)
    return str(found.state.name) if found else GONE


def _stage(service: str, words: Sequence[str], stage: str) -> int:
    """Run one stage, which needs what this process does not load, as the service does; its exit code."""
    arguments = parser().parse_args(["compare", *words])
    command = [sys.executable, "-m", service, "compare", str(arguments.study), "--stage", stage]
    command += ["--verbose"] if arguments.verbose else []
    for what in ("work", "data", "models", "optimizers"):
        if (value := getattr(arguments, what)) is not None:
            command += [f"--{what}", str(value)]
    code = subprocess.run(command, check=False).returncode
    return code if code >= 0 else 128 - code
