"""A training that was told to stop and did so in order: the marker it leaves, and how to go on with it.

    <run>/STOPPED   {"step": 120, "checkpoint": 120, "reason": "SIGTERM"}

torchrun exits with 1 after SIGTERM though every rank has saved and ended well, and with 0 if only a rank was
told, so the marker alone tells. The service removes it when training begins again.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STOPPED = "STOPPED"


@dataclass(frozen=True)
class Stopped:
    """Where a training stopped."""

    step: int
    checkpoint: int | None
    """Step of the newest complete checkpoint, if there is one."""

    def line(self, command: Sequence[str]) -> str:
        """What the user is told; `command` goes on with the run."""
        saved = "" if self.checkpoint == self.step else f", saved after step {self.checkpoint}"
        if self.checkpoint is None:
            saved = ", before anything was saved"
        return f"stopped after step {self.step}{saved}; go on with: {shlex.join(command)}"


class StopMarker:
    """The marker of a run directory as the job leaves it that starts now; an earlier job's does not count."""

    def __init__(self, run: Path) -> None:
        self._path = run / STOPPED
        self._earlier = self._identity()

    def read(self) -> Stopped | None:
        """Where this job stopped; None if it was not told to, or did not manage to."""
        if self._identity() == self._earlier:
            return None
        try:
            said = json.loads(self._path.read_text())
            checkpoint = said["checkpoint"]
            return Stopped(int(said["step"]), None if checkpoint is None else int(checkpoint))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
