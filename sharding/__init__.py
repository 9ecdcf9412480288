"""Where rows live: plans, the sharder, engines, the plan-independent state. Names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "HelenSharder": "helen",
    "Plan": "plan",
    "RowsStep": "rows.step",
    "Sharded": "shard",
    "TableOptimizer": "engines",
    "learning_state": "rows.state",
    "load_learning": "rows.state",
    "load_plan": "plan",
    "make_plan": "plan",
    "shard": "shard",
}

__all__ = [
    "HelenSharder",
    "Plan",
    "RowsStep",
    "Sharded",
    "TableOptimizer",
    "learning_state",
    "load_learning",
    "load_plan",
    "make_plan",
    "shard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
