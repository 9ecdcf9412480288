"""How far training is, on stderr: a bar on a terminal, a plain line now and then elsewhere, nothing on other ranks.

The launcher starts ranks behind a pipe, so it passes the terminal's width in `SPARTA_TERMINAL`: then
rich draws as if on a terminal. Without it rich decides.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from sparta.models.errors import ConfigError

TERMINAL = "SPARTA_TERMINAL"
"""Environment variable: columns of the terminal at the far end of the pipe; empty for none."""

LINE_SECONDS = 10.0
"""Least time between two plain lines."""


def console() -> Console:
    """Standard error, as a terminal if it is one or leads to one.

    Raises:
        ConfigError: `SPARTA_TERMINAL` is no width.
    """
    columns = os.environ.get(TERMINAL, "")
    if not columns:
        return Console(stderr=True)
    if not columns.isascii() or not columns.isdigit() or int(columns) < 1:
        raise ConfigError(f"{TERMINAL}={columns!r} is no number of columns; unset it or give one, such as 80")
    return Console(stderr=True, force_terminal=True, width=int(columns))


class Progress:
    """The bar of one training run; use it as a context manager, so that the cursor comes back."""

    def __init__(
        self,
        total_steps: int | None,
        *,
        rank: int = 0,
        out: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self._clock = clock
        self._began, self._start = clock(), 0
        self._next_line = self._began
        self._validation = ""
        self._out = (out or console()) if rank == 0 else None
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        if self._out is not None and self._out.is_interactive:
            columns = (
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}", markup=False),
            )
            self._bar = RichProgress(*columns, console=self._out, expand=True, refresh_per_second=4)
            self._task = self._bar.add_task("train", total=total_steps, completed=0, status="starting")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, step: int) -> None:
        """Training goes on after `step`, of which the pace knows nothing."""
        self._began, self._start = self._clock(), step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if step and step == self.total_steps:
            self.note(
                f"all {step:,} steps are done; a larger --set train.epochs=N or train.max_steps=N goes on"
            )
        elif step:
            self.note(f"going on after step {step:,}")

    def update(self, step: int, *, epoch: int, loss: float, examples_per_second: float) -> None:
        """Show a step; plain lines are at least `LINE_SECONDS` apart, but the last step is always told."""
        if self._out is None:
            return
        parts = [
            f"{step:,}/{self.total_steps:,}" if self.total_steps else f"{step:,}",
            f"epoch {epoch}",
            f"loss {loss:.4f}",
            f"{_short(examples_per_second)} ex/s",
            *([self._validation] if self._validation else []),
            *([f"ETA {self._eta(step)}"] if self.total_steps else []),
        ]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status="  ".join(parts))
        elif self._clock() >= self._next_line or step == self.total_steps:
            self._next_line = self._clock() + LINE_SECONDS
            self._print("step " + "  ".join(parts))

    def note(self, text: str) -> None:
        """Tell something that is no progress, above the bar."""
        self._print(f"note: {text}")

    def _print(self, line: str) -> None:
        if self._out is not None:
            with suppress(OSError):  # stderr may be a file, on a disk that is full just now
                self._out.print(Text(line), soft_wrap=True)

    def validated(self, metrics: Mapping[str, Mapping[str, float | None]]) -> None:
        """Show from now on the AUC of the latest evaluation, the mean of the tasks."""
        values = [value for task in metrics.values() if (value := task.get("auc")) is not None]
        self._validation = f"AUC {sum(values) / len(values):.4f}" if values else ""
        if self._bar is None and self._validation:
            self._print(f"valid  {self._validation}")

    def _eta(self, step: int) -> str:
        """Time left at the mean pace so far, evaluations included."""
        done = step - self._start
        if done <= 0:
            return "-:--"
        left = max((self.total_steps or 0) - step, 0)
        seconds = round((self._clock() - self._began) / done * left)
        hours, rest = divmod(seconds, 3600)
        minutes, seconds = divmod(rest, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _short(number: float) -> str:
    """Three digits or so: 1.23M, 45.6k, 789."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"
