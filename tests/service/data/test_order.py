"""Laws of the order: what the ranks read together does not depend on the ranks, and no row is lost."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.errors import ConfigError
from sparta.service.data.order import Order

GROUP_ROWS = st.lists(st.integers(0, 40), max_size=8)
STREAMS = st.integers(1, 20)
SHARE = st.integers(1, 12)
RANKS = st.integers(1, 8)
LAW = settings(deadline=None)  # how long an example takes is up to the machine


def file_rows(order: Order, group_rows: list[int], batch: int) -> dict[int, int]:
    """Slot of the rank -> row of the split in file order, for one batch."""
    first = [sum(group_rows[:group]) for group in range(len(group_rows))]
    slots: dict[int, int] = {}
    for piece in order.pieces(batch):
        rows = order.rows_of(piece.group)
        for i in range(piece.rows):
            row = piece.first + i if rows is None else int(rows[piece.first + i])
            assert piece.slot + i not in slots
            slots[piece.slot + i] = first[piece.group] + row
    return slots


def global_batches(group_rows: list[int], *, ranks: int = 1, **settings: Any) -> list[dict[int, int]]:
    """Slot of the global batch -> row of the split, for every batch, put together from all ranks."""
    orders = [Order(group_rows, rank=rank, ranks=ranks, **settings) for rank in range(ranks)]
    batches = []
    for batch in range(orders[0].steps):
        slots: dict[int, int] = {}
        for order in orders:
            for slot, row in file_rows(order, group_rows, batch).items():
                assert 0 <= slot < order.slots
                slots[order.first + slot] = row
        batches.append(slots)
    return batches


@LAW
@given(GROUP_ROWS, STREAMS, SHARE, RANKS, st.booleans())
def test_global_batches_do_not_depend_on_the_ranks(
    group_rows: list[int], streams: int, share: int, ranks: int, shuffle: bool
) -> None:
    settings = {"batch_size": streams * share, "streams": streams, "shuffle": shuffle, "seed": 3}
    assert global_batches(group_rows, ranks=ranks, **settings) == global_batches(group_rows, **settings)


@LAW
@given(GROUP_ROWS, STREAMS, SHARE, st.integers(-(2**63), 2**64), st.integers(0, 5))
def test_every_row_exactly_once_an_epoch(
    group_rows: list[int], streams: int, share: int, seed: int, epoch: int
) -> None:
    batches = global_batches(group_rows, batch_size=streams * share, streams=streams, seed=seed, epoch=epoch)
    assert sorted(row for slots in batches for row in slots.values()) == list(range(sum(group_rows)))


@LAW
@given(GROUP_ROWS, STREAMS, SHARE)
def test_all_batches_but_the_last_are_full_and_it_is_not_empty(
    group_rows: list[int], streams: int, share: int
) -> None:
    sizes = [len(slots) for slots in global_batches(group_rows, batch_size=streams * share, streams=streams)]
    assert all(size == streams * share for size in sizes[:-1])
    assert all(sizes)


@LAW
@given(GROUP_ROWS, STREAMS, SHARE)
def test_a_stream_is_a_range_of_the_permuted_row_groups(
    group_rows: list[int], streams: int, share: int
) -> None:
    """The slow oracle: lay the rows out, cut them into streams, deal a share of each to every batch."""
    settings: dict[str, Any] = {"batch_size": streams * share, "streams": streams, "seed": 5, "epoch": 2}
    order = Order(group_rows, **settings)
    total = sum(group_rows)
    one_stream = global_batches(group_rows, **settings | {"batch_size": max(total, 1), "streams": 1})
    sequence = [one_stream[0][slot] for slot in range(total)] if total else []
    cut = [sequence[total * s // streams : total * (s + 1) // streams] for s in range(streams)]
    expected = [
        {
            s * share + i: row
            for s, rows in enumerate(cut)
            for i, row in enumerate(rows[batch * share : (batch + 1) * share])
        }
        for batch in range(order.steps)
    ]
    assert global_batches(group_rows, **settings) == expected


@LAW
@given(GROUP_ROWS, st.integers(1, 50))
def test_one_stream_unshuffled_is_the_order_of_the_files(group_rows: list[int], batch_size: int) -> None:
    batches = global_batches(group_rows, batch_size=batch_size, streams=1, shuffle=False)
    rows = [slots[slot] for slots in batches for slot in sorted(slots)]
    assert rows == list(range(sum(group_rows)))


@LAW
@given(GROUP_ROWS, STREAMS, SHARE, RANKS, st.booleans())
def test_last_marks_exactly_the_last_use_of_each_group(
    group_rows: list[int], streams: int, share: int, ranks: int, shuffle: bool
) -> None:
    for rank in range(ranks):
        order = Order(
            group_rows, batch_size=streams * share, streams=streams, rank=rank, ranks=ranks, shuffle=shuffle
        )
        pieces = [piece for batch in range(order.steps) for piece in order.pieces(batch)]
        final = {piece.group: i for i, piece in enumerate(pieces)}
        assert [i for i, piece in enumerate(pieces) if piece.last] == sorted(final.values())


@LAW
@given(st.integers(1, 30), st.integers(1, 16))
def test_a_rank_holds_at_most_two_row_groups_a_stream_between_batches(groups: int, streams: int) -> None:
    """One that the stream reads, and one that it shares with the next stream."""
    order = Order([16] * groups, batch_size=streams * 2, streams=streams)
    held: set[int] = set()
    for batch in range(order.steps):
        for piece in order.pieces(batch):
            held.add(piece.group)
            if piece.last:
                held.remove(piece.group)
        assert len(held) < 2 * streams
    assert not held


def test_epochs_and_seeds_and_row_groups_differ() -> None:
    def rows(**settings: Any) -> list[int]:
        batches = global_batches([100, 100, 100], batch_size=60, streams=1, **settings)
        return [slots[slot] for slots in batches for slot in sorted(slots)]

    orders = [rows(seed=0), rows(seed=1), rows(epoch=1), rows(epoch=2), rows(shuffle=False)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert rows(seed=1, epoch=2) == rows(seed=1, epoch=2)
    inside = Order([100, 100], batch_size=1, streams=1)
    assert inside.rows_of(0).tolist() != inside.rows_of(1).tolist()  # type: ignore[union-attr]


def test_permutations_are_uniform() -> None:
    """Each of 6 orders of 3 rows about equally often: 5 degrees of freedom, chi-square below 25 (p = 1e-4)."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        rows = Order([3], batch_size=1, streams=1, seed=seed).rows_of(0)
        assert rows is not None
        counts[tuple(rows.tolist())] = counts.get(tuple(rows.tolist()), 0) + 1
    assert len(counts) == 6
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 25


@pytest.mark.parametrize("name", ["batch_size", "streams", "ranks"])
def test_sizes_below_one_are_refused_by_name(name: str) -> None:
    sizes = {"batch_size": 4, "streams": 2, "ranks": 1} | {name: 0}
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        Order([10], **sizes)


def test_a_batch_that_streams_cannot_share_is_refused_naming_both() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 100 .* streams 16"):
        Order([10], batch_size=100, streams=16)


def test_a_rank_outside_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank 2 is outside \[0, 2\)"):
        Order([10], batch_size=4, streams=2, rank=2, ranks=2)
