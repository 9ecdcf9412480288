"""Local jobs that run on their own, as other shells find them: a small file for each.

    ${XDG_STATE_HOME:-~/.local/state}/sparta/jobs/<id>.json   which process, which run, and at last its exit code
                                                  <id>.out    what the job printed: results
                                                  <id>.err    messages, and why it failed

The files of a job that has ended have no other reader than these verbs, and may be deleted.
"""

import errno
import json
import os
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sparta.models.errors import ConfigError

PREFIX = "local_cwd://sparta/"
"""Of a handle."""

State = Literal["RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
"""As TorchX names them."""

TOLD = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
"""Exit codes of a job that was told to stop."""


@dataclass(frozen=True)
class Record:
    """One job."""

    id: str
    verb: str
    arguments: tuple[str, ...]
    """Of the verb."""
    run: str
    """The run directory, absolute."""
    cwd: str
    service: str
    """The module that owns the verb."""
    started: float
    """Seconds since 1970."""
    pid: int = 0
    """Of the process and its session."""
    born: str = ""
    """What no other process with this pid has."""
    exit_code: int | None = None

    @property
    def handle(self) -> str:
        return PREFIX + self.id

    @property
    def path(self) -> Path:
        return folder() / f"{self.id}.json"

    @property
    def out(self) -> Path:
        return self.path.with_suffix(".out")

    @property
    def err(self) -> Path:
        return self.path.with_suffix(".err")

    def save(self) -> None:
        """Write it, whole or not at all.

        Raises:
            ConfigError: the folder cannot be written.
        """
        make_folder()
        draft = self.path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(self.path)

    def alive(self) -> bool:
        """Whether its process still runs; a later process with the same pid is another one."""
        return self.pid > 0 and born(self.pid) == self.born

    def state(self) -> State:
        """What has become of it."""
        if self.exit_code is None and self.alive():
            return "RUNNING"
        # Its last act is to write the exit code, perhaps after this was read.
        code = find(self.id).exit_code if self.exit_code is None else self.exit_code
        if code == 0:
            return "SUCCEEDED"
        return "CANCELLED" if code in TOLD else "FAILED"


def folder() -> Path:
    """Where the files are."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sparta" / "jobs"


def make_folder() -> None:
    """Make it where it is missing.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
        if not os.access(folder(), os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"{folder()}: cannot be written ({error.strerror}); set XDG_STATE_HOME to a folder that can"
        ) from error


def new_id(name: str) -> str:
    """Of a job with that name."""
    return f"{name}-{secrets.token_hex(3)}"


def find(handle: str) -> Record:
    """The job of a handle, or of the end of one.

    Raises:
        ConfigError: there is none.
    """
    record = known(handle)
    if record is None:
        raise ConfigError(f"{handle}: no local job of that name; `sparta list` shows them")
    return record


def known(handle: str) -> Record | None:
    """The same, or None where there is none."""
    name = handle.removeprefix(PREFIX)
    return _read(folder() / f"{name}.json") if re.fullmatch(r"[\w.-]+", name) else None


def newest_first() -> Iterator[Record]:
    """All jobs."""
    records = filter(None, map(_read, folder().glob("*.json")))
    yield from sorted(records, key=lambda record: record.started, reverse=True)


def born(pid: int) -> str:
    """When a process began, in ticks since the boot, and which boot; empty if there is none, or it is dead."""
    try:
        # The name, in parentheses, may hold blanks.
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if status[0] in "ZX" else f"{boot}:{status[19]}"


def _read(path: Path) -> Record | None:
    try:
        said: dict[str, Any] = json.loads(path.read_text())
        return Record(**{**said, "arguments": tuple(said["arguments"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
