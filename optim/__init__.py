"""The mathematics of training on plain tensors, one process: optimizers, schedules. Names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ASAM": "sam",
    "SAM": "sam",
    "EarlyStop": "schedule",
    "Helen": "helen",
    "Passes": "passes",
    "Plateau": "schedule",
    "Schedule": "schedule",
}

__all__ = ["ASAM", "SAM", "EarlyStop", "Helen", "Passes", "Plateau", "Schedule"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
