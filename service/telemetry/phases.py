"""Where a rank's time goes: a step is cut into phases by marks, each of which ends the phase before it.

On a CPU a mark is the clock. On a GPU the host only queues work and runs ahead of it, so there a mark is a CUDA
event on the stream of the steps, read when the GPU has come by; one step a second is enough.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch

BETWEEN = "between steps"
"""What is neither a phase of a step nor of the work that stands between two."""
SAMPLE_SECONDS = 1.0
"""Between two steps whose events are recorded."""


class Timer(Protocol):
    """Takes marks and tells the time between two."""

    every_seconds: float
    """Steps are timed so often at most; 0 for each."""

    def mark(self) -> Any: ...

    def passed(self, mark: Any) -> bool:
        """Whether the time of the mark is known, and so that of all before it."""
        ...

    def seconds(self, start: Any, end: Any) -> float: ...


class HostTimer:
    """The clock of this process."""

    every_seconds = 0.0

    def mark(self) -> float:
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaTimer:
    """Events on the stream that is current when this is made, in whichever stream the mark is taken."""

    every_seconds = SAMPLE_SECONDS

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end)) / 1000


def timer(device: torch.device) -> Timer:
    """What times the steps on a device."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()


class Marks(Protocol):
    """Who is told of the phases of steps."""

    def begin(self, phase: str) -> None: ...

    def end_step(self) -> None: ...

    def outside(self, phase: str) -> None:
        """No step is under way; this begins, or BETWEEN again."""
        ...


class Phases:
    """The phases of one step after the other.

    Args:
        seen: told the seconds of each phase of a step, once the step's last mark has passed.
    """

    def __init__(
        self,
        timer: Timer,
        seen: Callable[[str, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timer = timer
        self._seen = seen
        self._clock = clock
        self._next = clock()  # when a step is to be timed again
        self._marks: list[tuple[str, Any]] = []
        self._waiting: list[tuple[str, Any]] = []  # of a step whose marks have not passed

    def begin(self, phase: str) -> None:
        """The phase before ends, this one begins; it may come several times in a step."""
        if self._marks or self._clock() >= self._next:
            self._marks.append((phase, self._timer.mark()))

    def end_step(self) -> None:
        """What comes now is no part of the step."""
        if self._marks and not self._waiting:
            self._waiting = [*self._marks, ("", self._timer.mark())]
            self._next = self._clock() + self._timer.every_seconds
        self._marks = []
        if self._waiting and self._timer.passed(self._waiting[-1][1]):
            self._tell(self._waiting)
            self._waiting = []

    def outside(self, phase: str) -> None:
        """Nothing: these are no phases of steps."""

    def _tell(self, marks: list[tuple[str, Any]]) -> None:
        spent: defaultdict[str, float] = defaultdict(float)
        for (phase, start), (_, end) in pairwise(marks):
            spent[phase] += self._timer.seconds(start, end)
        for phase, seconds in spent.items():
            self._seen(phase, seconds)
