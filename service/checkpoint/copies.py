"""A copy of all state, taken inside one step, that training can go on beside.

The memory is kept from one copy to the next: fresh pages would take longer than the copy.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparta.sharding.state import LogicalTable, Window


class Copies:
    """Host memory for the copies of one state."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, int], Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the tensors, good until the next call; other values are taken as they are."""
        copied = {name: self._copy(name, value) for name, value in state.items()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # what is on a GPU is copied beside us
            torch.cuda.synchronize()
        return copied

    def _copy(self, name: str, value: Any) -> Any:
        if isinstance(value, LogicalTable):
            windows = [
                Window(window.row, window.column, self._into((name, number), window.values))
                for number, window in enumerate(value.windows)
            ]
            return LogicalTable(value.shape[0], value.shape[1], windows, dtype=value.dtype)
        return self._into((name, 0), value) if isinstance(value, Tensor) else value

    def _into(self, key: tuple[str, int], value: Tensor) -> Tensor:
        memory = self._memory.get(key)
        if memory is None or memory.shape != value.shape or memory.dtype != value.dtype:
            memory = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._memory[key] = memory
        return memory.copy_(value, non_blocking=True)


def bytes_of(state: Mapping[str, Any]) -> int:
    """Bytes that a copy of a state would take on this rank."""
    parts = [
        [window.values for window in value.windows] if isinstance(value, LogicalTable) else [value]
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return sum(part.numel() * part.element_size() for one in parts for part in one)
