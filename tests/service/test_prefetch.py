"""The prefetcher on a CPU: the order of batches, and that each is sent once, in time and to its collection."""

from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Slots
from sparta.service.prefetch import Prefetcher


def batches(count: int) -> list[Batch]:
    return [
        Batch(
            KeyedJaggedTensor(["C1"], torch.tensor([number]), lengths=torch.tensor([1])),
            torch.zeros(1, 0),
            torch.zeros(1, 1),
            Slots(1, number + 1, 0, torch.ones(1)),
        )
        for number in range(count)
    ]


class Collection:
    """Notes what is sent and accepted."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def takes(self, sparse: KeyedJaggedTensor) -> bool:
        return True

    def send(self, sparse: KeyedJaggedTensor) -> int:
        self.seen.append(("send", int(sparse.values()[0])))
        return int(sparse.values()[0])

    def accept(self, arrived: int) -> None:
        self.seen.append(("accept", arrived))


def prefetcher(count: int, *collections: Any) -> Prefetcher:
    return Prefetcher(iter(batches(count)), torch.device("cpu"), collections)


def numbers(given: Prefetcher) -> list[int]:
    return [int(batch.sparse.values()[0]) for batch in given]


def test_batches_come_in_their_order_and_end() -> None:
    given = prefetcher(3)
    assert numbers(given) == [0, 1, 2]
    assert numbers(given) == []
    with pytest.raises(StopIteration):
        next(given)


def test_each_batch_is_sent_once_and_accepted_where_it_was_sent() -> None:
    first, second = Collection(), Collection()
    given = prefetcher(3, first, second)
    for _ in given:
        given.ahead()
        given.ahead()  # the next is begun already
    expected = ["send 0", "accept 0", "send 1", "accept 1", "send 2", "accept 2"]
    for one in (first, second):
        assert [f"{what} {number}" for what, number in one.seen] == expected


def test_the_next_batch_is_sent_before_it_is_asked_for() -> None:
    one = Collection()
    given = prefetcher(2, one)
    next(given)
    given.ahead()
    assert one.seen[-1] == ("send", 1)
    next(given)
    given.ahead()  # nothing is left
    assert one.seen[-1] == ("accept", 1)
