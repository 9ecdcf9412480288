"""What saving has cost so far."""

from sparta.service.checkpoint.manifest import Manifest


class Log:
    """What saving has cost so far."""

    def __init__(self) -> None:
        self.saves = 0
        self.failures = 0
        self.bytes = 0
        """Of the last one."""
        self.bytes_written = 0
        self.seconds: float | None = None
        """The last one took, from the step it was taken in to the commit."""
        self.stall_seconds = 0.0
        """All steps were held up by copies."""

    def wrote(self, size: int) -> None:
        self.bytes_written += size

    def saved(self, manifest: Manifest, seconds: float, stalled: float) -> None:
        self.saves += 1
        self.bytes = manifest.bytes
        self.seconds = seconds
        self.stall_seconds += stalled
