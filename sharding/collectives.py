"""The few collectives the project needs; on one rank, or without a process group, each is the identity."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def total(x: Tensor) -> Tensor:
    """Sum over the ranks, in place. Not differentiable."""
    if ranks() > 1:
        dist.all_reduce(x)
    return x


def from_first(value: T) -> T:
    """Rank 0's value (anything picklable) on every rank."""
    if ranks() == 1:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Every rank's value (anything picklable), in the order of the ranks, on every rank."""
    if ranks() == 1:
        return [value]
    box: list[T] = [value] * ranks()
    dist.all_gather_object(box, value)
    return box


def barrier() -> None:
    """Wait until every rank is here."""
    if ranks() > 1:
        dist.barrier()
