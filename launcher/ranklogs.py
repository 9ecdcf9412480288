"""The logs of all ranks of a local job, each line with its rank in front, and why they were started again."""

import re
import sys
import time
from pathlib import Path

from sparta.launcher.forward import NOTES, Follower
from sparta.launcher.local import POLL_SECONDS
from sparta.launcher.records import Record
from sparta.launcher.run_directory import LOGS
from sparta.models.errors import ConfigError

_NAME = re.compile(r"rank-(\d+)\.(log|out)")


ALL = "all"
"""In place of a rank: what concerns every one."""


class RankLog:
    """One file of one rank, line by line."""

    def __init__(self, path: Path, rank: str) -> None:
        self._file = Follower(path, 1, whole=True)
        self._rank = rank.encode()
        self._begun = b""

    def show(self, *, last: bool = False) -> None:
        """Print the lines that are complete; of the last also what is not."""
        *lines, self._begun = (self._begun + self._file.read()).split(b"\n")
        if last and self._begun:
            lines.append(self._begun)
        for line in lines:
            # Of a progress bar, what it came to.
            text = line.rstrip(b"\r").rpartition(b"\r")[2]
            sys.stdout.buffer.write(b"[%s] %s\n" % (self._rank, text))
        sys.stdout.buffer.flush()


def show_logs(record: Record, *, follow: bool = False, rank: int | None = None) -> None:
    """Print what the ranks have written, or one of them; with `follow` until the job has ended.

    Raises:
        ConfigError: the job has no such rank.
    """
    folder, shown = Path(record.run, LOGS, record.verb), dict[Path, RankLog]()
    while True:
        # The state first: what was written before the end is shown after it.
        running = record.state() == "RUNNING"
        for number, path in _files(folder):
            if rank in (None, number):
                shown.setdefault(path, RankLog(path, str(number))).show(last=not running)
        if rank is None and (notes := folder / NOTES).exists():
            shown.setdefault(notes, RankLog(notes, ALL)).show(last=not running)
        if not (follow and running):
            break
        time.sleep(POLL_SECONDS)
    if not shown and rank is not None and (ranks := sorted({number for number, _ in _files(folder)})):
        raise ConfigError(f"--rank {rank}: the job has ranks {ranks[0]} to {ranks[-1]}")
    if not shown and record.err.exists():
        # It was refused before there were ranks.
        sys.stderr.write(record.err.read_text(errors="replace"))


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Ranks and their files, in order."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("rank-*"))
    return sorted((int(match[1]), path) for match, path in found if match)
