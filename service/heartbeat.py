"""Where every rank is, on disk for all to see; and the end of a run in which one does not move.

`<folder>/rank-<r>.beat` is one line of JSON, rewritten in place: the training thread writes it at every step,
a second thread every second, with a number that grows, so that a process that was stopped tells from one that
waits. That thread closes the file each time: on a network disk the other machines then see it. When this rank
has waited longer than `stuck_seconds`, it looks twice who holds all up, says so and ends the process; torchrun
then ends the others, and starts all again.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

FOLDER = "SPARTA_BEATS"
"""Environment variable: where the launcher wants the files."""

LINE_BYTES = 512
TOUCH_SECONDS = 1.0
SILENT_SECONDS = 10.0
"""Between the two looks; clocks of several machines are not compared."""
STUCK_CODE = 75
"""Exit code after which the launcher tries again, although the last line of the log is an error."""

# Frames of these wait for another rank, or in C++ below them.
_WAITING = ("torch/distributed/", "torchrec/distributed/", "torch/autograd/", "sharding/collectives.py")
# These read a number from the device, which on a GPU is not there before the collective that makes it has ended.
_READING = ("sharding/rows/tables.py", "service/step.py", "service/meter.py", "service/scoring.py")


class Heartbeat:
    """This rank's file, and the eye on the others'.

    Args:
        folder: of the files; None for no heartbeat at all.
    """

    def __init__(self, folder: Path | None, *, rank: int, ranks: int, stuck_seconds: float) -> None:
        self._folder = folder
        self._ranks = ranks
        self._stuck_seconds = stuck_seconds
        self._line: dict[str, Any] = {
            "rank": rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": 0,
            "began": 0,
            "phase": "start",
            "saving": "",
            "at": time.time(),
            "touches": 0,
        }
        self._touches: dict[int, int] = {}
        self._next_look = 0.0
        self._file = -1
        self._main = threading.get_ident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sparta-heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = _path(self._folder, self._line["rank"])
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            self._write()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._done.set()
            self._thread.join()
            os.close(self._file)
            self._file = -1

    def begin(self, step: int) -> None:
        """Training goes on from here."""
        self._line["began"] = step
        self.beat("step", step)

    def beat(self, phase: str, step: int | None = None) -> None:
        """Something was achieved; `step` is the last one finished."""
        self._line.update(phase=phase, at=time.time())
        if step is not None:
            self._line["step"] = step
        self._write()

    @property
    def begun(self) -> bool:
        """Whether training has begun."""
        return bool(self._line["phase"] != "start")

    @property
    def quiet_seconds(self) -> float:
        """Since something was achieved."""
        return float(time.time() - self._line["at"])

    def still(self) -> None:
        """Something was achieved in what is under way; before training begins that is not watched."""
        if self.begun:
            self.beat(self._line["phase"])

    def others(self) -> None:
        """This rank waits for the others: something was achieved, if the processes of all of them run.

        Each of them watches himself, as long as he runs.
        """
        if self._folder is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._stuck_seconds / 8
        touches = {rank: line["touches"] for rank, line in self._look().items()}
        if all(touches.get(rank) != self._touches.get(rank) for rank in range(self._ranks)):
            self._touches = touches
            self.still()

    def saving(self, phase: str) -> None:
        """A phase of a save has begun, in whichever thread; empty when it has ended."""
        self._line["saving"] = phase
        self._write()

    def _write(self) -> None:
        if self._file >= 0:
            self._write_to(self._file)

    def _write_to(self, file: int) -> None:
        with suppress(OSError):  # a full disk is no reason to stop
            os.pwrite(file, (json.dumps(self._line) + "\n").encode().rjust(LINE_BYTES), 0)

    def _touch(self) -> None:
        assert self._folder is not None
        self._line["touches"] += 1
        with suppress(OSError):
            file = os.open(_path(self._folder, self._line["rank"]), os.O_WRONLY | os.O_CREAT, 0o644)
            self._write_to(file)
            os.close(file)

    def _watch(self) -> None:
        last, since = self._line["at"], time.monotonic()
        while not self._done.wait(min(TOUCH_SECONDS, self._stuck_seconds / 4)):
            place, waits = whereabouts(sys._current_frames().get(self._main))
            self._line.update(place=place.encode("ascii", "replace").decode()[-200:], waits=waits)
            self._touch()
            # Loading a large checkpoint is no step; until training begins the collectives' own time limit holds.
            if self._line["at"] != last or self._line["phase"] == "start":
                last, since = self._line["at"], time.monotonic()
            if time.monotonic() - since > self._stuck_seconds:
                before = self._look()
                self._done.wait(min(SILENT_SECONDS, self._stuck_seconds / 2))
                if self._line["at"] == last and not self._done.is_set():
                    self._touch()
                    self._give_up(before)

    def _look(self) -> dict[int, dict[str, Any]]:
        assert self._folder is not None
        return read_beats(self._folder, self._ranks)

    def _give_up(self, before: Mapping[int, Mapping[str, Any]]) -> None:
        """Name the rank that holds all up, and end it and this process."""
        beats = self._look()
        alive = {r for r, line in beats.items() if line["touches"] != before.get(r, {}).get("touches")}
        culprit = blame(beats, self._ranks, alive)
        line = beats.get(culprit, {})
        who = f"rank {culprit}" + (f" on {line['host']}" if line else "")
        after = f" after step {line['step']}" if line else ""
        how = f"it is at {line.get('place')}" if culprit in alive else "its process does not run"
        print(
            f"error: {who} has made no progress for {self._stuck_seconds:g} s{after} ({how}); "
            "if a step may take so long, raise tolerate.stuck_seconds",
            file=sys.stderr,
            flush=True,
        )
        # All have written their beats since they were started, or this rank would not have begun.
        if culprit != self._line["rank"] and line.get("host") == self._line["host"]:
            with suppress(ProcessLookupError):
                os.kill(line["pid"], signal.SIGKILL)  # what is stopped does not hear torchrun's SIGTERM
        os._exit(STUCK_CODE)


def read_beats(folder: Path, ranks: int) -> dict[int, dict[str, Any]]:
    """The last line of every rank that has one."""
    found = {}
    for rank in range(ranks):
        with suppress(OSError, ValueError):
            found[rank] = json.loads(_path(folder, rank).read_text())
    return found


def blame(beats: Mapping[int, Mapping[str, Any]], ranks: int, alive: Collection[int]) -> int:
    """Whom the others wait for: who shows no life, else who does not wait himself, else who is behind."""

    def order(rank: int) -> tuple[bool, bool, int, int]:
        line = beats.get(rank, {})
        return (rank in alive, bool(line.get("waits")), line.get("step", 0), rank)

    return min(range(ranks), key=order)


def whereabouts(frame: FrameType | None) -> tuple[str, bool]:
    """(file:line in function, of the innermost frame, whether that waits for another rank)."""
    if frame is None:
        return "no Python code", False
    stack = traceback.extract_stack(frame)[-4:]
    inner = stack[-1]
    waits = any(part in entry.filename for entry in stack for part in _WAITING) or inner.filename.endswith(
        _READING
    )
    return f"{inner.filename}:{inner.lineno} in {inner.name}", waits


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.beat"
