"""What a batch is and the zoo of recommenders. Names load on first use, so `models.schema` needs no torch."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Batch": "batch",
    "Embeddings": "embedding",
    "Inputs": "embedding",
    "Schema": "schema",
    "ZOO": "zoo",
}

__all__ = ["ZOO", "Batch", "Embeddings", "Inputs", "Schema"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
