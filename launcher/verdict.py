"""Why a job failed: the ranks' logs and exit codes, read as one line and one exit code.

A mistake of the user's is told by the service itself, as a line `error: ...` of at least one rank; the
other ranks then fail as a consequence. Without such a line a rank crashed or was killed, and the launcher
names it: first whoever was killed, then whoever raised, last who was only told to stop.
"""

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparta.launcher.agent import FAILURES, LOG
from sparta.launcher.rank import log_path

_ERROR = re.compile(r"^error: .+", re.MULTILINE)
_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|^\[rank\d+\]: ?", re.MULTILINE)
_RAISED = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(?P<what>\S.*)", re.MULTILINE)

TAIL_BYTES = 1 << 16
TAIL_LINES = 20

# A rank that aborts or is told to stop most often follows another one's end (NCCL's watchdog, torchrun).
_CONSEQUENCES = {-signal.SIGABRT: 2, -signal.SIGTERM: 3}


@dataclass(frozen=True)
class Verdict:
    """What the user is told, and what the launcher exits with."""

    line: str
    code: int
    refused: bool
    """The service itself refused the job; nothing crashed."""
    log: Path
    """Where there is more to read."""


class Logs:
    """The logs that one job writes, from where they end when it starts: earlier jobs' stay in front."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder = folder
        self._starts = {path: size(path) for path in (*self._ranks(ranks), folder / LOG)}
        (folder / FAILURES).unlink(missing_ok=True)

    def _ranks(self, ranks: int) -> list[Path]:
        return [log_path(self.folder, rank) for rank in range(ranks)]

    def tail(self, path: Path) -> str:
        """The end of what this job wrote to a log, without colours and rank prefixes."""
        end = size(path)
        start = max(self._starts[path], end - TAIL_BYTES)
        if end <= start:
            return ""
        with path.open("rb") as file:
            file.seek(start)
            return _NOISE.sub("", file.read().decode(errors="replace").replace("\r", "\n"))

    def failures(self) -> dict[int, int]:
        """Exit codes of the ranks that failed, negative for signals; empty if torchrun itself failed."""
        try:
            codes = json.loads((self.folder / FAILURES).read_text())
        except (OSError, ValueError):
            return {}
        return {int(rank): int(code) for rank, code in codes.items()}

    def verdict(self) -> Verdict:
        """Why the job failed."""
        codes = self.failures()
        for rank in sorted(codes):
            path = log_path(self.folder, rank)
            said = _ERROR.findall(self.tail(path))
            if said:
                return Verdict(said[-1].rstrip(), codes[rank] if codes[rank] > 0 else 1, True, path)
        if codes:
            return self._crash(_first(codes), codes)
        path = self.folder / LOG
        last = self.tail(path).strip().rpartition("\n")[2]
        reason = f" ({last})" if last else ""
        return Verdict(f"error: torchrun stopped{reason}; its log is {path}", 1, False, path)

    def _crash(self, rank: int, codes: Mapping[int, int]) -> Verdict:
        path, code = log_path(self.folder, rank), codes[rank]
        if code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            what, code = f"was killed by {_signal_name(-code)}{hint}", 128 - code
        else:
            raised = list(_RAISED.finditer(self.tail(path)))
            reason = f" ({raised[-1]['what']})" if raised else ""
            what = f"stopped with exit code {code}{reason}"
        return Verdict(f"error: rank {rank} {what}; its log is {path}", code, False, path)

    def last_lines(self, path: Path) -> str:
        """What to show of a log when the user wants more."""
        return "\n".join(self.tail(path).rstrip().split("\n")[-TAIL_LINES:])


def size(path: Path) -> int:
    """Bytes in a log; 0 before it exists."""
    return path.stat().st_size if path.exists() else 0


def _first(codes: Mapping[int, int]) -> int:
    """The rank to blame: killed before raised before told to stop, then the lowest."""

    def order(rank: int) -> tuple[int, int]:
        code = codes[rank]
        return (_CONSEQUENCES.get(code, 0 if code < 0 else 1), rank)

    return min(codes, key=order)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
