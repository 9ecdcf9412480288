"""What rank 0 writes reaches the terminal byte for byte, except the noise of its death."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.launcher.forward import HOLD_SECONDS, Filter, Forward

PIECES = [
    b"step 1",
    b"\r",
    b"\n",
    b"\x1b[2K",
    b"e",
    b"error",
    b"[rank0]: ",
    b"Trace",
    b"\xff\x00",
    b"an error: no",
]
MARKS = [
    b"error: no column x\nmore\n",
    b"Traceback (most recent call last):\n  File\n",
    b"[rank0]: Traceback (most recent call last):\n",
]
streams = st.lists(st.sampled_from(PIECES)).map(b"".join)


def in_chunks(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@settings(deadline=None)
@given(streams, st.lists(st.integers(0, 1000)))
def test_without_a_mark_every_byte_passes_in_order(stream: bytes, cuts: list[int]) -> None:
    filter = Filter()
    shown = b"".join(filter.feed(chunk) for chunk in in_chunks(stream, cuts))
    assert stream.startswith(shown)
    assert shown + filter.release() == stream


@settings(max_examples=300, deadline=None)
@given(
    streams,
    st.sampled_from([b"\n", b"\r", b"\n\x1b[?25h"]),
    st.sampled_from(MARKS),
    st.lists(st.integers(0, 1000)),
)
def test_all_from_a_mark_on_is_held_however_the_stream_is_cut(
    stream: bytes, start: bytes, mark: bytes, cuts: list[int]
) -> None:
    filter = Filter()
    shown = b"".join(filter.feed(chunk) for chunk in in_chunks(stream + start + mark, cuts))
    assert shown == stream + start
    assert filter.release() == mark


def test_a_progress_bar_is_not_delayed() -> None:
    assert Filter().feed(b"\r 10% loss 0.5") == b"\r 10% loss 0.5"


def test_a_rank_that_lives_on_is_shown_late() -> None:
    now = 0.0
    filter = Filter(clock=lambda: now)
    assert filter.feed(b"a\nerror: b\n") == b"a\n"
    now = HOLD_SECONDS + 1
    assert filter.feed(b"c\n") == b"error: b\nc\n"
    assert filter.feed(b"d\n") == b"d\n"


class Screen:
    """A folder of logs and what a Forward shows of it."""

    def __init__(self, folder: Path) -> None:
        self.log, self.results = folder / "rank-0.log", folder / "rank-0.out"
        self._shown = folder / "out", folder / "err"
        self.fds = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in self._shown]

    def shown(self) -> tuple[bytes, bytes]:
        """What went to stdout and stderr."""
        for fd in self.fds:
            os.close(fd)
        out, err = self._shown
        return out.read_bytes(), err.read_bytes()


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    return Screen(tmp_path)


@pytest.mark.parametrize(
    "failed, verbose, expected",
    [
        (False, False, b"new\nerror: x\ny\n"),
        (True, False, b"new\n"),
        (True, True, b"new\ny\n"),
    ],
)
def test_a_log_is_followed_from_its_end(
    screen: Screen, tmp_path: Path, failed: bool, verbose: bool, expected: bytes
) -> None:
    screen.log.write_bytes(b"of an earlier job\n")
    forward = Forward(tmp_path, *screen.fds, verbose=verbose)
    with screen.log.open("ab") as file:
        file.write(b"new\nerror: x\ny\n")
    forward.pump()
    forward.finish(failed=failed, told="error: x")
    assert screen.shown() == (b"", expected)


def test_a_line_cut_off_by_death_is_ended(screen: Screen, tmp_path: Path) -> None:
    forward = Forward(tmp_path, *screen.fds)
    forward.pump()
    screen.log.write_bytes(b" 50%")
    forward.finish(failed=True)
    assert screen.shown() == (b"", b" 50%\n")


def test_a_note_stands_where_the_death_before_it_was_and_the_next_attempt_follows(
    screen: Screen, tmp_path: Path
) -> None:
    (tmp_path / "restarts.log").write_text("note: of an earlier job\n")
    forward = Forward(tmp_path, *screen.fds)
    screen.log.write_bytes(b"\r 50%")
    forward.pump()
    with screen.log.open("ab") as log, (tmp_path / "restarts.log").open("a") as notes:
        log.write(b"\nTraceback (most recent call last):\n  File\nRuntimeError: x\n")
        log.flush()
        forward.pump()
        notes.write("note: restarted\n")
        notes.flush()
        forward.pump()
        log.write(b"\r 40%\n")
    forward.finish(failed=False)
    assert screen.shown() == (b"", b"\r 50%\nnote: restarted\n\r 40%\n")


def test_results_go_to_stdout_untouched_and_after_the_messages(screen: Screen, tmp_path: Path) -> None:
    forward = Forward(tmp_path, screen.fds[0], screen.fds[0])
    screen.results.write_bytes(b"error: is a fine result\n")
    screen.log.write_bytes(b"100%\n")
    forward.pump()
    assert screen.shown() == (b"100%\nerror: is a fine result\n", b"")
