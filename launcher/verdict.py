"""Why a job failed: the ranks' logs and exit codes, read as one line and one exit code.

A mistake of the user's is told by the service itself, as a line `error: ...` of at least one rank; the
other ranks then fail as a consequence. Without such a line a rank crashed or was killed, and the launcher
names it: first whoever was killed, then whoever raised, last who was only told to stop. torchrun's process
(launcher/agent.py) reads the logs of the last attempt and leaves `verdict.json` for the launcher.
"""

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sparta.launcher.beats import clear_beats, read_beat
from sparta.launcher.rank import log_path

LOG = "torchrun.log"
VERDICT = "verdict.json"
TRY_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a rank that says `error: ...` of a fault that a restart may cure, such as a stuck rank."""

_ERROR = re.compile(r"^error: (.+)", re.MULTILINE)
_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|^\[rank\d+\]: ?", re.MULTILINE)
_RAISED = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(?P<what>\S.*)", re.MULTILINE)

TAIL_BYTES = 1 << 16
TAIL_LINES = 20

# A rank that aborts or is told to stop most often follows another one's end (NCCL's watchdog, torchrun).
_CONSEQUENCES = {-signal.SIGABRT: 2, -signal.SIGTERM: 3}


@dataclass(frozen=True)
class Verdict:
    """What the user is told, and what the launcher exits with."""

    what: str
    code: int
    said: bool
    """The service itself said it; nothing crashed."""
    log: Path
    """Where there is more to read."""

    @property
    def line(self) -> str:
        """The line for the user."""
        return f"error: {self.what}" if self.said else f"error: {self.what}; its log is {self.log}"

    @property
    def refused(self) -> bool:
        """The service would say it again."""
        return self.said and self.code != TRY_AGAIN


class Logs:
    """What the ranks write from now on: logs of earlier attempts and jobs stay in front, beats are removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starts = {path: path.stat().st_size for path in folder.glob("*.log")}
        clear_beats(folder)
        (folder / VERDICT).unlink(missing_ok=True)

    def tail(self, path: Path) -> str:
        """The end of what was written to a log, without colours and rank prefixes."""
        if not path.exists():
            return ""
        start = max(self._starts.get(path, 0), path.stat().st_size - TAIL_BYTES)
        with path.open("rb") as file:
            file.seek(start)
            return _NOISE.sub("", file.read().decode(errors="replace").replace("\r", "\n"))

    def verdict(self, codes: Mapping[int, int]) -> Verdict:
        """Why the ranks failed, from their exit codes: at least one, negative for a signal."""
        # Of a rank that only gave up waiting, and one that says why it left, the second is the reason.
        for rank in sorted(codes, key=lambda rank: (codes[rank] == TRY_AGAIN, rank)):
            path = log_path(self.folder, rank)
            said = _ERROR.findall(self.tail(path))
            if said:
                return Verdict(said[-1].rstrip(), codes[rank] if codes[rank] > 0 else 1, True, path)
        return self._crash(_first(codes), codes)

    def leave(self, verdict: Verdict) -> None:
        """Write a verdict where `left` reads it."""
        (self.folder / VERDICT).write_text(json.dumps({**asdict(verdict), "log": str(verdict.log)}))

    def left(self) -> Verdict:
        """The verdict that torchrun's process left; if none, then it is torchrun itself that failed."""
        try:
            said = json.loads((self.folder / VERDICT).read_text())
            return Verdict(said["what"], said["code"], said["said"], Path(said["log"]))
        except (OSError, ValueError):
            path = self.folder / LOG
            last = self.tail(path).strip().rpartition("\n")[2]
            why = f" ({last})" if last else " without a word, as if it had been killed (out of memory?)"
            return Verdict(f"torchrun stopped{why}", 1, False, path)

    def _crash(self, rank: int, codes: Mapping[int, int]) -> Verdict:
        path, code, beat = log_path(self.folder, rank), codes[rank], read_beat(self.folder, rank)
        if code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            what, code = f"was killed by {_signal_name(-code)}{hint}", 128 - code
        else:
            raised = list(_RAISED.finditer(self.tail(path)))
            reason = f" ({raised[-1]['what']})" if raised else ""
            what = f"stopped with exit code {code}{reason}"
        who = f"rank {rank} on {beat.host}" if beat else f"rank {rank}"
        when = f" after step {beat.step}" if beat else ""
        return Verdict(f"{who} {what}{when}", code, False, path)

    def last_lines(self, path: Path) -> str:
        """What to show of a log when the user wants more."""
        return "\n".join(self.tail(path).rstrip().split("\n")[-TAIL_LINES:])


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
