"""What rank 0 writes, live on the user's terminal: raw bytes, so that its progress bar works.

Its stdout (results) is our stdout, its stderr (progress, messages) our stderr. One thing is kept back: a
line of stderr that begins with `error: ` or a traceback, with all that follows. Such a rank is about to
die, and then one line says why: the launcher's at the end, a note where the ranks are restarted. If it lives
on, they are shown late.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from sparta.launcher.rank import log_path, output_path

NOTES = "restarts.log"
"""A line for the user whenever the ranks are restarted."""

_ESCAPES = (
    rb"(?:\x1b\[[0-9;?]*[A-Za-z])*"  # a progress bar that ends leaves some at the start of the next line
)
_MARK = re.compile(
    rb"(?<![^\r\n])"
    + _ESCAPES
    + rb"(?P<mark>(?:\[rank\d+\]: *)?(?:error: |Traceback \(most recent call last\)))"
)
_ONLY_ESCAPES = re.compile(_ESCAPES + rb"(?:\x1b(?:\[[0-9;?]*)?)?")
_MARKS = (b"error: ", b"Traceback (most recent call last)")
_RANK = b"[rank"
_TEXT = b"x"

HOLD_SECONDS = 10.0
"""How long a rank may live on after a traceback before it is shown after all."""


class Filter:
    """Bytes in, bytes to show out. Works on any division of the stream into chunks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept = b""  # not shown yet: the end of a chunk that may begin a mark, or all since a mark
        self._line = b""  # shown of the current line: escapes as they are, anything more as _TEXT
        self._since: float | None = None  # when a mark was met

    def feed(self, chunk: bytes) -> bytes:
        """What of the stream so far may be shown now."""
        self._kept += chunk
        if self._since is not None:
            return self.release() if self._clock() - self._since > HOLD_SECONDS else b""
        mark = _MARK.search(self._line + self._kept)
        if mark:
            self._since = self._clock()
            return self._show(mark.start("mark") - len(self._line))
        return self._show(self._maybe_mark())

    def release(self) -> bytes:
        """All that is kept back, to be shown after all."""
        self._since = None
        return self._show(len(self._kept))

    def _show(self, size: int) -> bytes:
        shown, self._kept = self._kept[:size], self._kept[size:]
        line = re.split(rb"[\r\n]", self._line + shown)[-1]
        self._line = line if _ONLY_ESCAPES.fullmatch(line) else _TEXT
        return shown

    def _maybe_mark(self) -> int:
        """How much to show: up to the start of the last line, if more bytes could make that a mark."""
        line = re.split(rb"[\r\n]", self._line + self._kept)[-1]
        line = re.sub(rb"\A" + _ESCAPES, b"", line)
        begun = any(mark.startswith(line) for mark in _MARKS) or _RANK.startswith(line[: len(_RANK)])
        return max(0, len(self._kept) - len(line)) if begun and len(line) < 64 else len(self._kept)


class Follower:
    """The bytes that are appended to a file, from where it ends now or begins, and a descriptor to write them to."""

    def __init__(self, path: Path, out: int, *, whole: bool = False) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() and not whole else 0
        self.out = out
        self.last = b"\n"
        """The last byte written."""

    def read(self) -> bytes:
        """What has been appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                chunk = file.read()
        except FileNotFoundError:
            return b""
        self._at += len(chunk)
        return chunk

    def write(self, data: bytes) -> None:
        """Write all of it."""
        self.last = data[-1:] or self.last
        while data:
            data = data[os.write(self.out, data) :]


class Forward:
    """Follows rank 0's two files in the folder of the logs, and the notes; tracebacks only if `verbose`."""

    def __init__(self, logs: Path, out: int = 1, err: int = 2, *, verbose: bool = False) -> None:
        self._results = Follower(output_path(logs, 0), out)
        self._messages = Follower(log_path(logs, 0), err)
        self._notes = Follower(logs / NOTES, err)
        self._filter = Filter()
        self._verbose = verbose

    def pump(self) -> None:
        """Show what has been written since the last call."""
        # Read in this order and written in the other: results and notes come after the messages before them.
        note, results = self._notes.read(), self._results.read()
        self._messages.write(self._filter.feed(self._messages.read()))
        self._results.write(results)
        if note:
            self._end_of_a_rank()
            self._notes.write(note)

    def finish(self, *, failed: bool, told: str = "") -> None:
        """Show the rest; of a failed rank not its traceback, unless verbose, nor the line `told` twice."""
        self.pump()
        if failed:
            self._end_of_a_rank(told)
        else:
            self._messages.write(self._filter.release())

    def _end_of_a_rank(self, told: str = "") -> None:
        rest, messages = self._filter.release(), self._messages
        if self._verbose:
            messages.write(rest.replace(told.encode() + b"\n", b""))
        if messages.last not in b"\r\n":
            messages.write(b"\n")
        if os.isatty(messages.out):
            messages.write(b"\x1b[?25h")  # a progress bar that was killed left the cursor hidden
