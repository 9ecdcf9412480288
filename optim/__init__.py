"""The mathematics of training on plain tensors, one process: schedules. Names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "EarlyStop": "schedule",
    "Plateau": "schedule",
    "Schedule": "schedule",
}

__all__ = ["EarlyStop", "Plateau", "Schedule"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
