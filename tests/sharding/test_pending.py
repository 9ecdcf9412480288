"""Who reads weights alone finds them paid, whatever the plan; who takes up what is owed finds them as they were."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparta.sharding.pending import fill, is_pending, pending_of
from sparta.sharding.state import LogicalTable, Window


def table(rows: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights, and what their rows owe: some nothing, some all."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, dim, generator=generator)
    logs = -torch.rand(rows, 1, generator=generator, dtype=torch.float64) * 3
    logs[torch.rand(rows, generator=generator) < 0.3] = 0
    logs[torch.rand(rows, generator=generator) < 0.1] = -2000
    return weights, logs


def pieces(whole: Tensor, rows: list[int], columns: list[int]) -> LogicalTable:
    """A table cut at rows and columns, all of it here, with nothing in it yet."""
    windows = [
        Window(row, column, whole.new_zeros(end - row, last - column))
        for row, end in zip([0, *rows], [*rows, whole.shape[0]], strict=True)
        for column, last in zip([0, *columns], [*columns, whole.shape[1]], strict=True)
    ]
    return LogicalTable(*whole.shape, windows, dtype=whole.dtype)


def reader(saved: dict[str, Tensor], state: dict[str, Any]) -> None:
    """As torch.distributed.checkpoint: everything that is asked for is there, and is filled in place."""
    for name, value in state.items():
        source = saved[name]
        for window in value.windows if isinstance(value, LogicalTable) else [Window(0, 0, value)]:
            height, width = window.values.shape
            window.values.copy_(
                source[window.row : window.row + height, window.column : window.column + width]
            )


def whole(of: Tensor) -> Tensor:
    found = torch.full(of.shape, torch.nan, dtype=of.dtype)
    for window in of.windows if isinstance(of, LogicalTable) else [Window(0, 0, of)]:
        height, width = window.values.shape
        found[window.row : window.row + height, window.column : window.column + width] = window.values
    return found


@given(st.integers(0, 99), st.sets(st.integers(1, 8)), st.sets(st.integers(1, 4)), st.booleans())
def test_every_plan_reads_what_was_paid(seed: int, rows: set[int], columns: set[int], plain: bool) -> None:
    weights, logs = table(9, 5, seed)
    saved = {"tables/t": weights, pending_of("tables/t"): logs}
    state: dict[str, Any] = {
        "tables/t": torch.zeros(9, 5) if plain else pieces(weights, sorted(rows), sorted(columns))
    }
    fill(state, saved, lambda wanted: reader(saved, wanted))
    assert list(state) == ["tables/t"]
    expected = torch.where(logs == 0, weights, (weights.double() * logs.exp()).float())
    assert torch.equal(whole(state["tables/t"]), expected)


def test_who_takes_up_what_is_owed_finds_weights_as_they_were() -> None:
    weights, logs = table(9, 5, 1)
    saved = {"tables/t": weights, "optim/t/pending": logs}
    state: dict[str, Any] = {"tables/t": pieces(weights, [4], []), "optim/t/pending": pieces(logs, [4], [])}
    fill(state, saved, lambda wanted: reader(saved, wanted))
    for name, expected in saved.items():
        assert torch.equal(whole(state[name]), expected)


@pytest.mark.parametrize("plain", [False, True])
def test_nothing_is_owed_where_nothing_of_it_was_saved(plain: bool) -> None:
    weights, logs = table(9, 5, 1)
    saved, before = (
        {"tables/t": weights},
        logs.clone()
        if plain
        else LogicalTable(9, 1, [Window(0, 0, logs.clone()), Window(0, 0, logs.clone())], dtype=logs.dtype),
    )
    state: dict[str, Any] = {"tables/t": torch.zeros(9, 5), "optim/t/pending": before}
    fill(state, saved, lambda wanted: reader(saved, wanted))
    assert torch.equal(state["tables/t"], weights)
    assert not whole(state["optim/t/pending"]).any()
    if isinstance(before, LogicalTable):
        assert not before.copies[0].values.any()


def test_only_the_state_of_a_table_is_called_pending() -> None:
    assert is_pending(pending_of("tables/user.wide"))
    assert not any(
        map(is_pending, ("tables/pending", "dense/pending", "dense_optim/w/pending", "optim/step"))
    )
