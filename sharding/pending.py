"""Weight decay that rows of a saved table have not paid yet, and how whoever reads the weights alone has them pay.

`tables/<name>` are the weights as they were when they were saved; `optim/<name>/pending`, (rows, 1) float64 and not
above 0, is the log of what each row is still to be multiplied by. A state without it owes nothing. A run that goes on
takes both as they are, and ends as if it had never been saved (rows/decay.py).
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from sparta.sharding.state import OPTIM, TABLES, LogicalTable, Window

PENDING = "/pending"

BLOCK = 1 << 16
"""Rows that pay at a time."""


def pending_of(name: str) -> str:
    """What belongs to `tables/<name>`."""
    return OPTIM + name.removeprefix(TABLES) + PENDING


def is_pending(name: str) -> bool:
    return name.startswith(OPTIM) and name.endswith(PENDING)


def fill(state: dict[str, Any], saved: Collection[str], read: Callable[[dict[str, Any]], None]) -> None:
    """Fill a state from a saved one; what its tables owe there is paid, unless the state takes it up.

    Args:
        saved: names there.
        read: fills those tensors of a state that it is given, and replaces its other values.
    """
    wanted = {name: value for name, value in state.items() if name in saved or not is_pending(name)}
    owed = {
        name: _column(state[name])
        for name in state
        if name.startswith(TABLES) and pending_of(name) in saved and pending_of(name) not in state
    }
    wanted |= {pending_of(name): column for name, column in owed.items()}
    read(wanted)
    for name, column in owed.items():
        pay(state[name], column)
    for name, value in state.items():
        if name in wanted:
            state[name] = wanted[name]
        else:  # saved by who had all rows pay
            for piece in _pieces(value):
                piece.zero_()


@torch.no_grad()
def pay(weights: Tensor, pending: Tensor) -> None:
    """Multiply the rows that are here; one that owes nothing keeps its bits."""
    if isinstance(weights, LogicalTable):
        assert isinstance(pending, LogicalTable)
        assert not weights.copies, "replicas of weights would not pay"
        logs = {window.row: window.values for window in pending.windows}
        for window in weights.windows:
            pay(window.values, logs[window.row])
        return
    for begin in range(0, len(weights), BLOCK):
        rows = slice(begin, begin + BLOCK)
        weights[rows] = weights[rows].double() * pending[rows].exp()


def _column(weights: Tensor) -> Tensor:
    """Zeros for the rows that are here."""
    if not isinstance(weights, LogicalTable):
        return torch.zeros(len(weights), 1, dtype=torch.float64)
    held = {window.row: window.values for window in weights.windows}
    columns = [
        Window(row, 0, values.new_zeros(len(values), 1, dtype=torch.float64)) for row, values in held.items()
    ]
    return LogicalTable(len(weights), 1, columns, dtype=torch.float64)


def _pieces(of: Tensor) -> list[Tensor]:
    return [window.values for window in (*of.windows, *of.copies)] if isinstance(of, LogicalTable) else [of]
