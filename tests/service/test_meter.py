"""What a meter has summed and nobody has read is kept in a checkpoint, for any number of ranks."""

from typing import Any

import pytest
import torch

from sparta.service.meter import Meter
from sparta.service.world import World
from tests.pool import Pool
from tests.service.test_trainer import CPU, batch


def metered(rank: int, ranks: int, state: dict[str, Any] | None) -> dict[str, Any]:
    """What each rank's meter says after two more steps than were in a state."""
    meter = Meter(CPU)
    if state is not None:
        meter.load_state_dict(state, World(rank, ranks, ranks, CPU))
    for step in (1, 2):
        share = batch(step)
        meter.add(torch.tensor((step + rank) / ranks), share)
    return meter.state_dict()


def readings(rank: int, ranks: int, state: dict[str, Any]) -> tuple[float, int, bool]:
    meter = Meter(CPU)
    meter.load_state_dict(state, World(rank, ranks, ranks, CPU))
    unread = meter.unread
    return meter.read()[0], meter.examples, unread


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_sums_that_were_not_read_are_kept_on_any_ranks(pool: Pool, before: int, after: int) -> None:
    states = pool.run(before, metered, None)
    assert all(state["pending"] == states[0]["pending"] for state in states)
    found = pool.run(after, readings, states[0])
    # The mean over two steps of what all ranks add up to, and 2 + 3 samples on each.
    loss = sum((step + rank) / before for step in (1, 2) for rank in range(before)) / 2
    for mean, examples, unread in found:
        assert unread
        assert mean == pytest.approx(loss)
        assert examples == 5 * before


def test_each_rank_takes_up_its_own_sums(pool: Pool) -> None:
    states = pool.run(2, metered, None)
    again = pool.run(2, metered, states[0])
    for number, (was, more) in enumerate(zip(states[0]["pending"], again[0]["pending"], strict=True)):
        assert more[0] == pytest.approx(2 * was[0]), number
        assert more[1] == 2 * was[1]
    assert again[0]["steps"] == 4
