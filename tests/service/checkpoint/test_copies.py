"""A copy stays as it is when the original goes on, and costs no new memory the second time."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparta.service.checkpoint.copies import Copies, bytes_of
from sparta.sharding.state import LogicalTable, Window
from tests.service.checkpoint.tables import numbers, pieces, state, values


def tensors(of: dict[str, object]) -> list[torch.Tensor]:
    """The memory of a state."""
    found = []
    for value in of.values():
        if isinstance(value, LogicalTable):
            found += [window.values for window in value.windows]
        elif isinstance(value, torch.Tensor):
            found.append(value)
    return found


@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from(["rows", "columns", "last"]),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_the_copy_of_a_table_has_its_windows_and_none_of_its_memory(
    rows: int, dim: int, kind: str, ranks: int, rank: int
) -> None:
    rank = min(rank, ranks - 1)
    table = pieces(torch.rand(rows, dim), kind, rank, ranks)
    before = values(table)
    copy = Copies().take({"tables/t": table})["tables/t"]
    for window in table.windows:
        window.values.fill_(-1)
    assert isinstance(copy, LogicalTable)
    assert (copy.shape, copy.dtype) == (table.shape, table.dtype)
    assert [window.offsets for window in copy.windows] == [window.offsets for window in table.windows]
    for found, expected in zip(copy.windows, before, strict=True):
        assert torch.equal(found.values, expected)
        assert found.values.is_contiguous()  # and not the padding with it


def test_a_copy_does_not_change_with_the_original() -> None:
    original = state(5.0)
    copy = Copies().take(original)
    for tensor in tensors(original):
        tensor.fill_(-1)
    assert numbers(copy) == numbers(state(5.0))


def test_the_memory_of_one_copy_is_that_of_the_next() -> None:
    copies = Copies()
    first = tensors(copies.take(state(1.0)))
    again = copies.take(state(2.0))
    assert [tensor.data_ptr() for tensor in tensors(again)] == [tensor.data_ptr() for tensor in first]
    assert numbers(again) == numbers(state(2.0))


def test_a_tensor_that_has_grown_gets_other_memory() -> None:
    copies = Copies()
    copies.take(state(1.0))
    assert numbers(copies.take(state(2.0, rows=70))) == numbers(state(2.0, rows=70))
    assert copies.take({"dense/w": torch.ones(3, dtype=torch.int64)})["dense/w"].dtype == torch.int64


def test_other_types_keep_their_type() -> None:
    counts = LogicalTable(4, 1, [Window(0, 0, torch.arange(4).view(4, 1))], dtype=torch.int64)
    copy = Copies().take({"optim/t/count": counts})["optim/t/count"]
    assert (copy.dtype, copy.windows[0].values.dtype) == (torch.int64, torch.int64)


def test_the_size_is_that_of_this_ranks_part() -> None:
    """7 x 4 floats of the table over the ranks, 3 floats and a count on each."""
    for ranks in (1, 2, 3):
        sizes = [bytes_of(state(1.0, rank, ranks)) for rank in range(ranks)]
        assert sum(sizes) == 7 * 4 * 4 + ranks * (3 * 4 + 8)
