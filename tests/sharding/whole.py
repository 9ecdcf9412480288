"""Whole tensors of what the ranks hold parts of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparta.sharding.collectives import gather
from sparta.sharding.rows.state import learning_state
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.state import LogicalTable, Window


def assembled(shape: tuple[int, int], windows: Sequence[Window]) -> Tensor:
    """A whole tensor, (..., *shape), from the windows of all ranks, which must agree where they overlap."""
    whole = torch.zeros(*windows[0].values.shape[:-2], *shape, dtype=torch.float64)
    seen = torch.zeros(shape, dtype=torch.bool)
    for window in windows:
        rows, columns = window.values.shape[-2:]
        place = (..., slice(window.row, window.row + rows), slice(window.column, window.column + columns))
        values = window.values.double()
        alike = torch.isclose(whole[place], values, rtol=0, atol=0, equal_nan=True)
        assert alike[..., seen[place]].all(), "replicas or copies differ"
        whole[place], seen[place] = values, True
    assert seen.all(), "a part of the table is nowhere"
    return whole


def whole_state(step: RowsStep) -> dict[str, Tensor]:
    """The plan-independent state as whole tensors; collective."""
    state = learning_state(step.tables)
    tables = {name: value for name, value in state.items() if isinstance(value, LogicalTable)}
    parts = gather({name: [*value.windows, *value.copies] for name, value in tables.items()})
    return {
        name: assembled(tuple(value.shape), [window for part in parts for window in part[name]])
        if name in tables
        else value.double()
        for name, value in state.items()
    }
