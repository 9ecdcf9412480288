"""Whether a job whose ranks failed is tried again: only where the next attempt may end otherwise.

A rank that refused the job would refuse it again, and ranks that died before they finished a step, or came so far
that they waited for data, would die there again, but for those that somebody killed while they were starting again;
then the first failure is what the user reads, at once. torchrun's process alone knows the exit codes of all its
ranks, so it decides here (launcher/agent.py), once for all of them.
"""

import signal
from collections.abc import Mapping
from pathlib import Path

from sparta.launcher.beats import progressed
from sparta.launcher.forward import NOTES
from sparta.launcher.run_directory import run_of
from sparta.launcher.stopped import StopMarker
from sparta.launcher.verdict import Logs


class Attempts:
    """The attempts at one job, from where its logs end now."""

    def __init__(self, folder: Path, allowed: int) -> None:
        self._folder, self._allowed = folder, allowed
        self._restarts = 0
        self._logs = Logs(folder)
        self._marker = StopMarker(run_of(folder))

    def again(self, codes: Mapping[int, int]) -> bool:
        """Whether to start the ranks again after they ended with `codes`; if so the user gets a note."""
        verdict = self._logs.verdict(codes)
        killed = self._restarts > 0 and -signal.SIGKILL in codes.values()
        if self._restarts == self._allowed or verdict.refused or not (killed or progressed(self._folder)):
            return False
        if self._marker.read():
            return False
        self._restarts += 1
        with (self._folder / NOTES).open("a") as file:
            file.write(f"note: {verdict.what}; restarted ({self._restarts} of {self._allowed}), resuming\n")
        self._logs = Logs(self._folder)
        return True

    def give_up(self, codes: Mapping[int, int]) -> None:
        """Leave for the launcher why the last attempt failed."""
        self._logs.leave(self._logs.verdict(codes))
