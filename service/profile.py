"""`sparta train --profile FIRST-LAST`: where the time of these steps goes, on every rank.

Two files a rank, in `profile/` of the run directory: a trace of all operators for Perfetto or chrome://tracing, with
the phases of the steps as ranges above them, and a table of the phases and of the operators that took longest.

On a GPU every phase waits for the device here, or it would be told the time of queueing: these steps are slower than
others.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sparta.models.errors import ConfigError
from sparta.service.run import write_atomically
from sparta.service.telemetry.instruments import PHASES
from sparta.service.telemetry.phases import BETWEEN, Marks

FOLDER = "profile"
OPERATORS = 20


def steps_of(text: str) -> tuple[int, int]:
    """First and last step of `20-40`.

    Raises:
        ConfigError: it is no such range.
    """
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile {text}: not FIRST-LAST, steps counted from 1, such as 20-40")
    return int(first), int(last)


class Profile:
    """Stands where the phases of the steps are told, and tells them on.

    Args:
        marks: who is told.
        steps: first and last one to look at.
        start: the step after which training goes on.
        note: told where the files are.
    """

    def __init__(
        self,
        marks: Marks,
        steps: tuple[int, int],
        *,
        start: int,
        folder: Path,
        rank: int,
        device: torch.device,
        note: Callable[[str], None],
    ) -> None:
        self._marks = marks
        self._first, self._last = steps
        self._step = start
        self._folder = folder / FOLDER
        self._rank = rank
        self._gpu = device.type == "cuda"
        self._note = note
        self._profiler: profile | None = None
        self._range: record_function | None = None
        self._phase, self._since = BETWEEN, 0.0
        self._spent: list[dict[str, float]] = []
        """Seconds of the phases, a step each."""
        self._this: defaultdict[str, float] = defaultdict(float)
        """The same of the step under way."""
        self._over = self._last <= start
        if self._over:
            note(
                f"--profile {self._first}-{self._last}: nothing to look at, training goes on after step {start}"
            )
        self._start_in_time()

    def begin(self, phase: str) -> None:
        self._marks.begin(phase)
        if self._profiler:
            self._mark(phase)

    def end_step(self) -> None:
        self._marks.end_step()
        self._step += 1
        if self._profiler:
            self._mark(BETWEEN)
            self._spent.append(self._this)
            self._this = defaultdict(float)
            if self._step == self._last:
                self.close()
        self._start_in_time()

    def outside(self, phase: str) -> None:
        self._marks.outside(phase)
        if self._profiler:
            self._mark(phase)

    def close(self) -> None:
        """Write what was seen; training ends, maybe before the last step that was asked for."""
        if self._profiler is None:
            if not self._over:
                self._note(f"--profile {self._first}-{self._last}: training ended after step {self._step}")
                self._over = True
            return
        self._leave()
        self._profiler.stop()
        if not self._spent:  # none of them was ever there
            self._profiler = None
            self.close()
            return
        self._folder.mkdir(exist_ok=True)
        trace = self._folder / f"rank-{self._rank}.trace.json.gz"
        self._profiler.export_chrome_trace(str(trace))
        table = trace.with_name(f"rank-{self._rank}.txt")
        write_atomically(table, self.table() + "\n\n" + self._operators() + "\n")
        first = self._step - len(self._spent) + 1  # a resumed training may have begun within the range
        self._note(f"profile of steps {first} to {self._step}: {table} and {trace.name}")
        self._profiler, self._over = None, True

    def table(self) -> str:
        """The phases: milliseconds a step, mean and median, and their share."""
        whole = fmean(sum(step.values()) for step in self._spent)
        lines = [f"{'phase':<16}{'mean ms':>10}{'median ms':>12}{'share':>8}"]
        for phase in (*PHASES, BETWEEN):
            each = [step.get(phase, 0.0) for step in self._spent]
            if not any(each):
                continue
            lines.append(
                f"{phase:<16}{1e3 * fmean(each):>10.2f}{1e3 * median(each):>12.2f}{fmean(each) / whole:>8.1%}"
            )
        lines.append(f"{f'{len(self._spent)} steps':<16}{1e3 * whole:>10.2f}")
        return "\n".join(lines)

    def _start_in_time(self) -> None:
        if self._profiler is None and not self._over and self._step >= self._first - 1:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._gpu else [])]
            self._profiler = profile(activities=kinds)
            self._profiler.start()
            self._phase, self._since = BETWEEN, self._now()

    def _mark(self, phase: str) -> None:
        """The phase before ends, this one begins."""
        now = self._now()
        self._this[self._phase] += now - self._since
        self._leave()
        self._phase, self._since = phase, now
        self._range = record_function(phase)
        self._range.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self) -> None:
        if self._range:
            self._range.__exit__(None, None, None)
            self._range = None

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _operators(self) -> str:
        by: Any = "self_device_time_total" if self._gpu else "self_cpu_time_total"
        assert self._profiler is not None
        found: str = self._profiler.key_averages().table(sort_by=by, row_limit=OPERATORS)
        return found
