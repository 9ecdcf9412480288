"""One training at a time in a run directory: a lock that its first rank holds and that ends with the process.

The kernel knows at once when a process of this machine has died. A file system that machines share may keep the
lock of a dead machine for a while more (NFS 4: its lease, 90 s), so that is waited for. Where there are no locks,
two trainings in one directory are not noticed.
"""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from sparta.models.errors import ConfigError

LOCK = ".lock"
"""In the run directory; it stays there, and says who has it or had it last."""
LEASE_SECONDS = 100.0
MOMENT_SECONDS = 2.0
"""For who looks whether it is taken, and so has it for a moment."""


class RunLock:
    """The lock of a run directory; taking it twice is taking it once."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Keep other trainings out until `close`, or until this process has ended.

        Raises:
            ConfigError: one is at work there.
        """
        if self._file or not self._run.is_dir():
            return
        try:
            file = (self._run / LOCK).open("ab", buffering=0)
        except OSError:
            return  # what cannot be written is refused in better words
        try:
            self._wait(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        mine = {"machine": _machine(), "host": socket.gethostname(), "process": os.getpid()}
        with suppress(OSError):  # a full disk is no reason not to train
            file.truncate(0)
            file.write(f"{json.dumps(mine)}\n".encode())

    def close(self) -> None:
        """Let others in."""
        if self._file:
            self._file.close()
            self._file = None

    def _wait(self, file: IO[bytes]) -> None:
        began = time.monotonic()
        while not _locked(file):
            machine, told = _holder(self._run)
            if time.monotonic() - began > (MOMENT_SECONDS if machine == _machine() else LEASE_SECONDS):
                raise _at_work(self._run, told)
            time.sleep(0.1)


def check_alone(run: Path) -> None:
    """Refuse a run directory in which a process of this machine trains.

    Raises:
        ConfigError: one does.
    """
    try:
        file = (run / LOCK).open("rb")
    except OSError:
        return
    with file:
        machine, told = _holder(run)
        if machine == _machine() and not _locked(file):
            raise _at_work(run, told)


def _locked(file: IO[bytes]) -> bool:
    """Whether it is ours now, or there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _machine() -> str:
    """What tells machines apart; containers of one, whose names differ, have the same kernel and its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _holder(run: Path) -> tuple[str, str]:
    """Its machine, and what the user is told."""
    try:
        said = json.loads((run / LOCK).read_text())
        return str(said["machine"]), f"process {said['process']} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return _machine(), "another process"  # it is just taking it


def _at_work(run: Path, holder: str) -> ConfigError:
    return ConfigError(f"{run}: {holder} is training there; wait for it, stop it, or give another --run-dir")
