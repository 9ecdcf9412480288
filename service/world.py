"""The ranks of this run: one process group, one device a rank. A single process is a world of one."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from sparta.models.errors import ConfigError, SpartaError
from sparta.sharding.device import unused, usable_gpus

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is among its peers."""

    rank: int
    ranks: int
    local_ranks: int
    """Ranks on this machine; table_row_wise places a table within one machine."""
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all: files, progress bar, tables."""
        return self.rank == 0

    def once(self, work: Callable[[], T]) -> T:
        """Do it on the first rank only; its result, or its error, on every rank. Collective."""
        answer: list[T | SpartaError | None] = [None]
        if self.first:
            try:
                answer[0] = work()
            except SpartaError as error:
                answer[0] = error
        dist.broadcast_object_list(answer)
        if isinstance(answer[0], SpartaError):
            raise answer[0]
        return cast(T, answer[0])


def device_for(wanted: Literal["auto", "cpu", "cuda"], local_ranks: int) -> Literal["cpu", "cuda"]:
    """The device of a machine's ranks; auto is cuda if every rank has a GPU that FBGEMM can use.

    Raises:
        ConfigError: cuda is asked for and cannot be had.
    """
    if wanted == "cpu":
        return "cpu"
    gpus = usable_gpus()
    if gpus >= local_ranks:
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(
            f"train.device: cuda, but {local_ranks} ranks find {gpus} GPUs that torch and FBGEMM can use here; "
            f"{unused() or 'use fewer ranks, cpu or auto'}"
        )
    return "cpu"


def _store() -> tuple[Any, int, int]:
    """Where the ranks find each other, this process's rank, and their number."""
    if "RANK" not in os.environ:
        return dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    store, rank, ranks = next(rendezvous("env://"))
    # torchrun keeps its store when it restarts the ranks: they would read the addresses of the dead.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefixed = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
    return prefixed, rank, ranks


@contextmanager
def world(device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[World]:
    """Join the ranks that torchrun started, or be alone; leave them at the end.

    Raises:
        ConfigError: CUDA is asked for and cannot be had.
    """
    on_gpu = device_for(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) == "cuda"
    if device == "auto" and not on_gpu and os.environ.get("RANK", "0") == "0" and (why := unused()):
        print(f"note: training on the CPU: {why}", file=sys.stderr)
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    joined = not dist.is_initialized()
    if joined:
        backend = "cuda:nccl,cpu:gloo" if on_gpu else "gloo"
        store, rank, ranks = _store()
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    try:
        yield World(
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())),
            device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
        )
    except BaseException:
        # Under torchrun the others are to notice when this process ends, not before it has said why: else
        # one of them may be taken for the one that failed.
        joined = joined and "RANK" not in os.environ
        raise
    finally:
        if joined:
            dist.destroy_process_group()
