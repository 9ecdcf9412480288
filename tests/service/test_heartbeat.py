"""Every rank's file is whole whenever it is read; the one all wait for is named and ended."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from sparta.service.heartbeat import (
    LINE_BYTES,
    STUCK_CODE,
    TOUCH_SECONDS,
    Heartbeat,
    blame,
    read_beats,
    whereabouts,
)
from tests.pool import Pool

PATIENCE_SECONDS = 60.0

ranks_of_a_job = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=5
)
"""Of each rank: whether it has a line, shows life, waits, and its step."""


@given(ranks_of_a_job)
def test_blame_is_no_life_before_no_wait_before_the_least_step(
    drawn: list[tuple[bool, bool, bool, int]],
) -> None:
    beats: dict[int, dict[str, Any]] = {
        rank: {"waits": waits, "step": step} for rank, (said, _, waits, step) in enumerate(drawn) if said
    }
    alive = {rank for rank, (said, lives, *_) in enumerate(drawn) if said and lives}
    culprit = blame(beats, len(drawn), alive)
    everyone = set(range(len(drawn)))
    suspects = everyone - alive or everyone
    suspects = {rank for rank in suspects if not beats.get(rank, {}).get("waits")} or suspects
    least = min(beats.get(rank, {}).get("step", 0) for rank in suspects)
    assert culprit == min(rank for rank in suspects if beats.get(rank, {}).get("step", 0) == least)


def frame_of(work: Callable[[threading.Event], object]) -> tuple[str, bool]:
    """Where a thread is that has begun to work, once it has stayed there."""
    begun = threading.Event()
    thread = threading.Thread(target=work, args=(begun,), daemon=True)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    before, found = "", ("-", False)
    while found[0] != before and time.monotonic() < deadline:
        before = found[0]
        time.sleep(0.05)
        assert thread.ident is not None
        found = whereabouts(sys._current_frames().get(thread.ident))
    return found


def test_a_thread_in_a_queue_is_named_by_its_line_and_waits_for_no_rank() -> None:
    box: queue.Queue[int] = queue.Queue()

    def work(begun: threading.Event) -> None:
        begun.set()
        box.get()

    place, waits = frame_of(work)
    box.put(0)
    assert place.rpartition(" in ")[2] in ("wait", "get")
    assert "threading.py:" in place or "queue.py:" in place
    assert not waits


@pytest.mark.parametrize(
    ("file", "waits"), [("sharding/rows/tables.py", True), ("sharding/rows/split.py", False)]
)
def test_who_reads_what_a_collective_leaves_on_a_gpu_waits_for_the_others(file: str, waits: bool) -> None:
    """NCCL's calls return at once; it is the number that is not there before all ranks have come."""
    lock = threading.Lock()
    namespace: dict[str, Any] = {"lock": lock}
    exec(compile("def agree():\n    lock.acquire()", f"/x/sparta/{file}", "exec"), namespace)

    def work(begun: threading.Event) -> None:
        begun.set()
        namespace["agree"]()

    with lock:
        assert frame_of(work) == (f"/x/sparta/{file}:2 in agree", waits)


def test_no_frame_is_no_python_code() -> None:
    assert whereabouts(None) == ("no Python code", False)


def waiting(rank: int, ranks: int, how: str) -> tuple[str, bool] | None:
    """Where rank 0 is while it waits for rank 1, by one kind of collective."""
    from sparta.sharding.collectives import barrier, gather, total

    group = dist.new_group(backend="gloo")
    leave = threading.Event()
    works: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(torch.ones(1), group=group),
        "total": lambda: total(torch.ones(1)),
        "gather": lambda: gather("x"),
        "barrier": barrier,
        "backward": lambda: Late.apply(torch.ones(1, requires_grad=True)).backward(),
    }

    def work(begun: threading.Event) -> None:
        begun.set()
        works[how]()
        leave.set()

    found = frame_of(work) if rank == 0 else None
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        store.set("seen", "yes")
        assert leave.wait(PATIENCE_SECONDS)
    else:
        store.wait(["seen"])
        works[how]()
    return found


class Late(torch.autograd.Function):
    """Waits for the other rank in the backward pass, as DDP does."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(gradient)
        return gradient


@pytest.mark.parametrize("how", ["all_reduce", "total", "gather", "barrier", "backward"])
def test_a_thread_in_a_collective_waits_for_another_rank(pool: Pool, how: str) -> None:
    place, waits = pool.run(2, waiting, how)[0]
    assert waits, place


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    with Heartbeat(None, rank=0, ranks=1, stuck_seconds=0.01) as heartbeat:
        heartbeat.begin(1)
        heartbeat.beat("step", 2)
        heartbeat.saving("data")
        assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_the_last_thing_that_was_achieved(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "train"
    with Heartbeat(folder, rank=1, ranks=2, stuck_seconds=600) as heartbeat:
        assert read_beats(folder, 2)[1]["phase"] == "start"
        heartbeat.begin(7)
        heartbeat.beat("step", 8)
        heartbeat.saving("data")
        heartbeat.beat("evaluate")
        (line,) = read_beats(folder, 2).values()
        assert (line["rank"], line["pid"]) == (1, os.getpid())
        assert (line["began"], line["step"], line["phase"], line["saving"]) == (7, 8, "evaluate", "data")
        heartbeat.saving("")
        assert read_beats(folder, 2)[1]["saving"] == ""
    assert read_beats(folder, 2)[1]["step"] == 8
    assert [path.name for path in folder.iterdir()] == ["rank-1.beat"]


def test_a_reader_never_sees_half_a_line(tmp_path: Path) -> None:
    stop = threading.Event()
    seen: list[dict[str, Any]] = []
    torn: list[str] = []

    def read() -> None:
        while not stop.is_set():
            text = (tmp_path / "rank-0.beat").read_text()
            try:
                seen.append(json.loads(text))
            except ValueError:
                torn.append(text)

    with Heartbeat(tmp_path, rank=0, ranks=1, stuck_seconds=600) as heartbeat:
        reader = threading.Thread(target=read)
        reader.start()
        for step in range(2000):
            heartbeat.beat("evaluate" if step % 2 else "x", 10 ** (step % 9))
        stop.set()
        reader.join()
    assert torn == []
    assert {line["phase"] for line in seen} <= {"start", "x", "evaluate"}
    assert (tmp_path / "rank-0.beat").stat().st_size == LINE_BYTES


def test_lines_that_are_missing_or_broken_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rank-1.beat").write_text("{")
    (tmp_path / "rank-2.beat").write_text('{"rank": 2}')
    assert list(read_beats(tmp_path, 4)) == [2]
    assert read_beats(tmp_path / "nowhere", 4) == {}


def test_a_process_that_waits_still_shows_life(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, rank=0, ranks=1, stuck_seconds=600):
        first = read_beats(tmp_path, 1)[0]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (now := read_beats(tmp_path, 1)[0])["touches"] == first["touches"]:
            assert time.monotonic() < deadline
            time.sleep(TOUCH_SECONDS / 20)
    assert now["at"] == first["at"]  # nothing was achieved
    assert "test_heartbeat.py" in now["place"]


STUCK = """
import sys, time
from pathlib import Path
from sparta.service.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1]), rank=int(sys.argv[2]), ranks=2, stuck_seconds=0.4) as heartbeat:
    heartbeat.begin(3)
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        if sys.argv[3] == "goes":
            heartbeat.beat("step", 4)
"""


def rank_that(does: str, folder: Path, rank: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", STUCK, str(folder), str(rank), does]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def test_a_stopped_rank_is_named_and_ended_by_one_that_waits_for_it(tmp_path: Path) -> None:
    stopped = rank_that("goes", tmp_path, 1)
    stopped.send_signal(signal.SIGSTOP)
    waiting = rank_that("waits", tmp_path, 0)
    _, told = waiting.communicate(timeout=PATIENCE_SECONDS)
    stopped.communicate(timeout=PATIENCE_SECONDS)
    assert (waiting.returncode, stopped.returncode) == (STUCK_CODE, -signal.SIGKILL)
    assert told.startswith("error: rank 1 on ")
    assert "has made no progress for 0.4 s after step " in told
    assert told.endswith(
        "(its process does not run); if a step may take so long, raise tolerate.stuck_seconds\n"
    )
    assert told.count("\n") == 1


def test_a_rank_that_never_spoke_is_named_without_a_host(tmp_path: Path) -> None:
    alone = rank_that("waits", tmp_path, 0)
    _, told = alone.communicate(timeout=PATIENCE_SECONDS)
    assert alone.returncode == STUCK_CODE
    assert told.startswith("error: rank 1 has made no progress for 0.4 s (its process does not run); ")
