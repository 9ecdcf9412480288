"""What saving has cost so far."""

from typing import Protocol

from sparta.service.checkpoint.manifest import Manifest


class Listener(Protocol):
    """Is told of every save when it has ended, in the thread that wrote it."""

    def saved(self, step: int, size: int, seconds: float, stalled: float) -> None: ...

    def not_saved(self) -> None: ...


class Log:
    """What saving has cost so far."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self.saves = 0
        self.failures = 0
        self.bytes = 0
        """Of the last one."""
        self.bytes_written = 0
        self.seconds: float | None = None
        """The last one took, from the step it was taken in to the commit."""
        self.stall_seconds = 0.0
        """All steps were held up by copies."""

    def with_one_more(self, stalled: float) -> dict[str, float]:
        """What a run that resumes from the save under way goes on with."""
        return {
            "saves": self.saves + 1,
            "failures": self.failures,
            "stall_seconds": round(self.stall_seconds + stalled, 4),
        }

    def go_on(self, manifest: Manifest) -> None:
        """Go on from a checkpoint of the same run."""
        so_far = manifest.about.get("so_far", {})
        self.saves, self.failures = so_far.get("saves", 0), so_far.get("failures", 0)
        self.stall_seconds = so_far.get("stall_seconds", 0.0)
        self.seconds = manifest.about.get("seconds")
        self.bytes = manifest.bytes

    def wrote(self, size: int) -> None:
        self.bytes_written += size

    def saved(self, manifest: Manifest, seconds: float, stalled: float) -> None:
        self.saves += 1
        self.bytes = manifest.bytes
        self.seconds = seconds
        self.stall_seconds += stalled
        if self._listener:
            self._listener.saved(manifest.step, manifest.bytes, seconds, stalled)

    def failed(self) -> None:
        self.failures += 1
        if self._listener:
            self._listener.not_saved()
