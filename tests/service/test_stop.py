"""What one rank hears all ranks know, at the same call."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from sparta.service.stop import MARKER, Stop, Stopped, mark, unmark
from sparta.service.world import world
from tests.pool import Pool

CALLS, AT = 6, 2


def answers(rank: int, ranks: int, heard: dict[int, int]) -> tuple[list[bool], float, float]:
    """What each call says on a rank that gets SIGTERM before some call, and the seconds left of 8 and of -100."""
    found = []
    with Stop().listening() as stop:
        for call in range(CALLS):
            if heard.get(rank) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            found.append(stop())
        if stop.heard_at is not None:
            stop.heard_at -= 100 * (1 + rank)  # long ago, on each rank another time
        return found, stop.seconds_left(8.0), stop.seconds_left(1000.0)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("heard", [{0: AT}, {1: AT}, {0: AT, 1: AT}, {0: AT + 1, 1: AT}])
def test_every_rank_stops_one_call_after_the_first_that_heard(
    pool: Pool, ranks: int, heard: dict[int, int]
) -> None:
    first = min(heard.values())
    # The time that is left is that of the rank with the least.
    oldest = max(heard)
    for found, left, more in pool.run(ranks, answers, heard):
        assert found.index(True) == first + 1
        assert 8 - 100 * (2 + oldest) < left <= 8 - 100 * (1 + oldest)
        assert 0 < more <= 1000 - 100 * (1 + oldest)


def test_without_a_signal_nobody_stops(pool: Pool) -> None:
    assert pool.run(2, answers, {}) == [([False] * CALLS, 8.0, 1000.0)] * 2


def apart(rank: int, ranks: int) -> bool:
    """Whether steps may have collectives of their own between the calls, with ranks at different paces."""
    import torch

    with Stop().listening() as stop:
        for call in range(20):
            time.sleep(0.002 * ((rank + call) % 2))
            if rank == 1 and call == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            value = torch.ones(1)
            dist.all_reduce(value)
            assert value == ranks
            if stop():
                return call == 11
    return False


def test_the_steps_own_collectives_are_not_disturbed(pool: Pool) -> None:
    assert pool.run(4, apart) == [True] * 4


def test_alone_the_answer_is_there_at_once() -> None:
    with world("cpu"), Stop().listening() as stop:
        assert not stop()
        assert stop.seconds_left(8.0) == 8.0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.seconds_left(8.0) < 8.0
        with pytest.raises(Stopped):
            stop.or_raise()


def test_the_first_signal_counts_and_the_handler_before_comes_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with world("cpu"), Stop().listening() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            first = stop.heard_at
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.heard_at == first is not None
            assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_is_left_to_the_launcher() -> None:
    before = signal.getsignal(signal.SIGINT)
    with world("cpu"), Stop().listening():
        assert signal.getsignal(signal.SIGINT) == before


def test_the_marker_says_where_the_run_goes_on(tmp_path: Path) -> None:
    mark(tmp_path, 17, 12)
    assert json.loads((tmp_path / MARKER).read_text()) == {"step": 17, "checkpoint": 12, "reason": "SIGTERM"}
    mark(tmp_path, 19, None)
    assert json.loads((tmp_path / MARKER).read_text())["checkpoint"] is None
    unmark(tmp_path)
    unmark(tmp_path)
    assert list(tmp_path.iterdir()) == []
