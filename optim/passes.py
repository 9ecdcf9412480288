"""Two passes over one batch that differ in the weights alone.

Dropout draws the same masks in both, and only one of them moves batch norm's running averages.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def frozen_averages(model: nn.Module) -> Iterator[None]:
    """Keep the running averages of every batch norm, ours and torch's, from moving in training mode."""
    layers: list[Any] = [child for child in model.modules() if hasattr(child, "running_mean")]
    before = [(layer.momentum, getattr(layer, "num_batches_tracked", None)) for layer in layers]
    tracked = [None if count is None else count.clone() for _, count in before]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, _), count in zip(layers, before, tracked, strict=True):
            layer.momentum = momentum
            if count is not None:
                layer.num_batches_tracked.copy_(count)


def randomness() -> Callable[[], None]:
    """A function that sets torch's random generators back to where they are now."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def replay() -> None:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return replay
